"""Findings about the loss: where it left, where it ended, and where it alone is no number."""

import numpy as np

from gradops.diagnose.finding import Finding, number
from gradops.diagnose.history import runs_to_the_end
from gradops.diagnose.view import View

# Fewer losses have no best one.
ENOUGH = 20
# Twice the best, and a fifth of what was gained lost again: small losses of small batches scatter more than that.
WORSE, LOST = 2.0, 0.2
LAST = 10
# So many losses in a row that are no numbers, and none after them, are the end.
GONE = 3
ABOVE_START, LEARNED = 1.5, 0.5
# So many times the first losses, or so many times the usual one, and more than once: no odd batch is that.
FAR, FAR_OUT = 5.0, 20.0
# Below it no loss overflows on its outputs' account.
LARGE_OUTPUT = 1e4


def ended(view: View) -> Finding | None:
    """A loss that ended far above its best or its start, or as no number."""
    rows, values = view.losses
    if not len(values):
        return None
    lost = runs_to_the_end(np.isinf(values))
    if lost is not None and len(values) - lost >= min(GONE, len(values)):
        row = int(rows[lost])
        return Finding("worse loss", f"The loss is inf or NaN since step {view.step(row)}.", row)
    return _rose(view) if len(values) < ENOUGH else _fell_and_rose(view)


def _fell_and_rose(view: View) -> Finding | None:
    rows, values = view.losses
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, LAST), axis=1)
    end, place = float(medians[-1]), int(medians.argmin())
    best = float(medians[place])
    if not np.isfinite(best):
        return None
    row = int(rows[place + LAST - 1])
    said = f"its best, {number(best)} at step {view.step(row)} (medians of {LAST} steps)."
    if np.isinf(end):
        return Finding("worse loss", f"Most of the last {LAST} losses are inf or NaN, after {said}", row)
    scale = max(float(medians[0]) - best, abs(best))
    if not (end - best > (WORSE - 1) * abs(best) and end - best > LOST * scale):
        return None
    ratio = f"{number(end / best)} times" if best > 0 else "above"
    return Finding("worse loss", f"The loss ended at {number(end)}, {ratio} {said}", row)


def _rose(view: View) -> Finding | None:
    """The same for a few steps, which have no best: they are compared with the first ones."""
    rows, values = view.losses
    width = max(1, len(values) // 4)
    start, end = float(values[:width].max()), float(np.median(values[-width:]))
    if len(values) < 2 or not 0 < start < end / WORSE:
        return None
    said = "is inf or NaN in the end" if np.isinf(end) else f"rose from {number(start)} to {number(end)}"
    return Finding("worse loss", f"The loss {said} within {len(values)} steps.", int(rows[-width]))


def spike(view: View) -> Finding | None:
    """A loss above any of the untrained network: an odd one, if the network had learned and went on as before."""
    rows, values = view.losses
    start = float(values[:5].max(initial=0.0))
    places = np.flatnonzero(np.isfinite(values) & (values > ABOVE_START * start))
    if not len(places) or not view.from_start or not 0 < start < np.inf:
        return None
    place, row = int(places[0]), int(rows[places[0]])
    before, after = (
        float(np.median(part)) if len(part) else np.inf
        for part in (values[max(0, place - LAST) : place], values[place + 1 :][:LAST])
    )
    text = f"Step {view.step(row)}: the loss was {number(float(values[place]))}, above any of the untrained network."
    if len(places) == 1 and max(before, after) < LEARNED * start and came_back(view, row):
        text += f" It had been {number(before)}, and was {number(after)} again after it (medians of {LAST} steps)."
        return Finding("odd loss", text + view.samples(row), row, level="warning")
    return Finding("loss spike", text, row, level="note")


def exploded(view: View) -> Finding | None:
    """A loss that went far above its first ones, more than once: the training left, wherever it went then."""
    rows, values = view.losses
    start = float(values[0]) if len(values) else 0.0
    if not view.from_start or not 0 < start < np.inf:
        return None
    far_from = min(FAR * float(np.median(values[:3])), FAR_OUT * float(np.median(values)))
    far = np.flatnonzero((values > max(ABOVE_START * start, far_from)) & np.isfinite(values))
    if not (np.diff(far) <= LAST).any():
        return None
    row, top = int(rows[far[0]]), int(far[values[far].argmax()])
    text = (
        f"Step {view.step(row)}: the loss left, from {number(start)} at first to {number(float(values[top]))} at step "
        f"{view.step(int(rows[top]))}."
    )
    back = np.median(values[-LAST:]) < start
    return Finding("loss explosion", text, row, level="warning" if back else "failure")


def came_back(view: View, row: int) -> bool:
    """Whether losses and gradients were numbers to the end after a row, as far as the record goes."""
    rows, values = view.losses
    norms = view.run.grad_norm[row + 1 :][~view.run.skipped[row + 1 :]]
    after = values[rows > row]
    lost = runs_to_the_end(np.isinf(after))
    if lost is not None and len(after) - lost >= GONE:
        return False
    # The last steps are most of them numbers, and were not skipped for good.
    finite = all(np.isfinite(np.median(_with_inf(part[-LAST:]))) for part in (after, norms) if len(part))
    return finite and len(norms) > 0 and not view.run.skipped[row + 1 :][-LAST:].all()


def _with_inf(values: "np.typing.NDArray[np.floating]") -> "np.typing.NDArray[np.floating]":
    """Every value that is no number as inf, which every comparison puts above the others."""
    return np.where(np.isfinite(values), values, np.inf)


def alone(view: View) -> Finding | None:
    """A loss that is no number although all outputs are, or was none before the first update."""
    rows, values = view.losses
    places = np.flatnonzero(np.isinf(values))
    if not len(places):
        return None
    row = int(rows[places[0]])
    from_start = view.from_start and places[0] == 0 and bool(np.isinf(values).all())
    finite = _outputs_are_finite(view, row)
    if finite is False:
        return None
    outputs = f"the outputs of all {len(view.run.layers)} watched layers are finite"
    if from_start:
        why = (
            f"though {outputs}: the loss function or the targets make it."
            if finite
            else "before any update: no learning rate makes it, but the loss function, the targets, the inputs or the "
            "initialisation do. A Recorder that is given the model shows which."
        )
        text = f"The loss is inf or NaN from the first step on, {why}"
        return Finding("bad loss", text + view.samples(row), row)
    if not finite:
        return None
    text = (
        f"Step {view.step(row)}: the loss was inf or NaN, though {outputs}: the loss function or the batch's targets "
        f"made it.{view.skipped(row)}{view.samples(row)}"
    )
    return Finding("bad targets", text, row, level="warning" if came_back(view, int(rows[places[-1]])) else "failure")


def _outputs_are_finite(view: View, row: int) -> bool | None:
    """Whether a step's outputs were numbers of usual size; None if they were not watched then."""
    run = view.run
    if not view.sampled[row]:
        return None
    return not run.activation_nonfinite[row].any() and not float(np.nanmax(run.activation_abs_max[row])) > LARGE_OUTPUT
