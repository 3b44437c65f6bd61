"""Findings about gradients: what left its history, what became non-finite, and what died."""

import numpy as np

from gradops.diagnose.activations import odd_batch
from gradops.diagnose.finding import Finding, Level, counted, number, share, times
from gradops.diagnose.history import Departure, runs_to_the_end
from gradops.diagnose.losses import alone, came_back
from gradops.diagnose.view import View

# The layers that left their history this long before the global norm did belong to the same event.
LEAD = 10
# A layer that matters has this share of the global norm.
MATTERS = 0.01
# Back below this many times the usual norm within so many steps, a spike was a single one.
CALM, RECOVERY = 5.0, 5
DEAD_FOR = 10
BEFORE, AFTER, LEARNS = 10, 20, 0.95
# Where nobody recorded the loss, only a growth beyond that of any plateau's end counts.
UNSEEN_LOSS = 200.0
SILENT = 0.99
NAMED = 3


def explosion(view: View) -> Departure | None:
    """The first step at which the global gradient norm left its history, and not because learning had begun."""
    return next((event for event in view.leaves if not _learns_after(view, event)), None)


def _learns_after(view: View, event: Departure) -> bool:
    """Whether the loss fell from there on: gradients grow, and by far, when a network leaves its first plateau."""
    rows, loss = view.losses
    before = loss[(rows >= event.row - BEFORE) & (rows < event.row)]
    after = loss[(rows > event.row) & (rows <= event.row + AFTER)]
    if not len(before) or not len(after):
        return not len(loss) and event.ratio < UNSEEN_LOSS
    return bool(np.median(after) < LEARNS * np.median(before))


def first_layer(view: View, event: Departure) -> tuple[str, Departure] | None:
    """The layer whose gradient left its history first in an explosion; of several in one step the one furthest out."""
    found = []
    for index, layer in enumerate(view.layers):
        for departure in view.layer_leaves[index]:
            near = event.row - LEAD <= departure.row <= event.row
            # Not the recorded norm of them all, which one layer's inf makes inf.
            norms = view.norms[departure.row]
            if near and departure.value >= MATTERS * np.linalg.norm(norms[np.isfinite(norms)]):
                found.append((departure.row, -departure.ratio, layer, departure))
                break
    return min(found)[2:] if found else None


def is_single(view: View, event: Departure) -> bool:
    """Whether the norm was back within a few steps, and has not left its history elsewhere."""
    after = view.run.grad_norm[event.row + 1 :]
    soon = np.where(np.isfinite(after), after, np.inf)[RECOVERY - 1 : 4 * RECOVERY]
    calm = len(soon) > 0 and bool(np.median(soon) < CALM * event.usual)
    return calm and len(view.leaves) <= RECOVERY and came_back(view, event.row)


def left_history(view: View) -> Finding | None:
    """The first layer whose gradient left its own history, at which step, by how much."""
    event = explosion(view)
    if event is None:
        return None
    layer, departure = first_layer(view, event) or ("", event)
    where = f"the gradient of {view.layer(layer)}" if layer else "the global gradient norm"
    text = (
        f"Step {view.step(departure.row)}: {where} left its own history first: norm {number(departure.value)}, "
        f"{times(departure.ratio)} times its usual {number(departure.usual)}."
    )
    if event.row > departure.row:
        text += f" The global norm followed at step {view.step(event.row)}: {times(event.ratio)} times its usual."
    if is_single(view, event):
        text += f" It was back within {RECOVERY} steps.{view.samples(event.row)}"
        return Finding("single spike", text, departure.row, layer or None, level="warning")
    return Finding("explosion", text, departure.row, layer or None)


def nonfinite(view: View) -> Finding | None:
    """Which parameter's gradient first became inf or NaN, and whether the loss scale explains it."""
    run = view.run
    rows = np.flatnonzero((run.nonfinite > 0).any(axis=1))
    if not len(rows):
        return None
    explained = {int(row): _scale_explains(view, int(row)) for row in rows}
    row = next((row for row, why in explained.items() if not why), int(rows[0]))
    hit = np.flatnonzero(run.nonfinite[row])
    last = int(hit[-1])
    of = share(run.nonfinite[row, last] / max(1, run.sizes[last]))
    text = (
        f"Step {view.step(row)}: inf or NaN in the gradients of {len(hit)} of {len(run.names)} parameters. The "
        f"backward pass runs from the last layer to the first and met it first in {view.name(run.names[last])} "
        f"({of} of it)."
    )
    if all(explained.values()):
        scales = f"{number(run.loss_scale[rows[0]])} to {number(run.loss_scale[-1])}"
        steps = counted(len(rows), "skipped step")
        text += f" The loss scale explains it: {steps} brought it from {scales}, as it should be."
        return Finding("scale search", text, row, run.names[last], level="note")
    text += f" {_why_not_scale(view, row)}"
    if row not in {found.row for found in (odd_batch(view), alone(view)) if found is not None}:
        text += view.skipped(row) + view.samples(row)
    level: Level = "warning" if came_back(view, int(rows[-1])) else "failure"
    return Finding("nonfinite gradient", text, row, run.names[last], level=level)


def _scale_explains(view: View, row: int) -> bool:
    """Whether nothing but a loss scale too large for float16 gradients made this step inf or NaN."""
    run = view.run
    calm = not _lost(view, row) and not run.activation_nonfinite[row].any()
    lower = (run.loss_scale < run.loss_scale[row]) & ~run.skipped
    return bool(run.loss_scale[row] > 1 and calm and lower[row:].any())


def _lost(view: View, row: int) -> bool:
    """Whether a row's loss was no number; not where nobody gave one."""
    rows, loss = view.losses
    return bool(np.isinf(loss[rows == row]).any())


def _why_not_scale(view: View, row: int) -> str:
    run = view.run
    if run.activation_nonfinite[row].any() or _lost(view, row):
        return "The loss scale does not explain it: the forward pass was not finite either."
    if run.loss_scale[row] == 1:
        return "No loss scale was in use, which could explain it."
    return "The loss scale does not explain it: no lower one has helped."


def dead(view: View) -> Finding | None:
    """Layers whose gradient is exactly zero to the end, and since when."""
    run = view.run
    found = {}
    for index, layer in enumerate(view.layers):
        row = runs_to_the_end((view.norms[:, index] == 0) | run.skipped)
        if row is not None and np.count_nonzero(~run.skipped[row:]) >= DEAD_FOR:
            found[layer] = row
    # A frozen layer's gradient is zero from the start as well: only its outputs show that it is dead.
    sure = [layer for layer, row in found.items() if row > 0 or _silent_outputs(view, layer, row)]
    if not sure:
        return None
    # What is dead blocks the gradient of everything before it, and feeds nothing to what follows.
    nearest = sure[-1]
    row = found[nearest]
    when = f"since step {view.step(row)}" if row else "from the first recorded step on"
    text = f"Layer {view.name(nearest)} is dead {when}: its gradient is exactly zero to the end of the record."
    text += _silent_outputs(view, nearest, row)
    others = [layer for layer in found if layer != nearest]
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        text += f" Without a gradient, too: {', '.join(map(view.name, others[-NAMED:]))}{more}."
    return Finding("dead layer", text, row, nearest)


def _silent_outputs(view: View, layer: str, row: int) -> str:
    """What the layer's outputs show of its death, if anything."""
    if layer not in view.run.layers:
        return ""
    index = view.run.layers.index(layer)
    negative, zero = (values[row:, index] for values in (view.run.activation_negative, view.run.activation_near_zero))
    for values, what in ((negative, "negative, which a ReLU after it turns into zeros"), (zero, "zero")):
        known = values[np.isfinite(values)]
        if known.size and np.median(known) > SILENT:
            return f" {share(float(np.median(known)))} of its outputs are {what}."
    return ""
