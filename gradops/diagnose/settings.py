"""Findings about what the user set: clipping, the loss scale, and what became of the loss."""

import numpy as np

from gradops.diagnose.finding import Finding, number, share
from gradops.diagnose.view import View

NEARLY_EVERY = 0.9
ENOUGH = 20
AT_FLOOR = 5
SKIPS = 0.1
# Twice the best, and a fifth of what was gained lost again: small losses of small batches scatter more than that.
WORSE, LOST = 2.0, 0.2
LAST = 10
ABOVE_START, LEARNED = 1.5, 0.5


def clipping(view: View) -> Finding | None:
    """Clipping that bound on nearly every step, which makes `max_norm` a learning rate."""
    coefs = view.run.clip_coef[~view.run.skipped]
    if len(coefs) < ENOUGH or not np.mean(coefs < 1) > NEARLY_EVERY:
        return None
    norm = view.run.about.get("max_norm")
    text = (
        f"Clipping bound in {share(float(np.mean(coefs < 1)))} of the steps"
        + (f" (max_norm {norm:g}, median gradient norm {number(_median_norm(view))})" if norm else "")
        + ": max_norm then sets the size of every gradient, as a learning rate does, and guards against nothing."
    )
    return Finding("clipping binds", text, trouble=False)


def _median_norm(view: View) -> float:
    norms = view.run.grad_norm[np.isfinite(view.run.grad_norm)]
    return float(np.median(norms)) if len(norms) else np.nan


def scale_floor(view: View) -> Finding | None:
    """A loss scale that sits at its floor and still overflows."""
    run, floor = view.run, view.run.about.get("min_scale")
    if floor is None:
        return None
    rows = np.flatnonzero((run.loss_scale <= floor) & run.skipped)
    if len(rows) < AT_FLOOR:
        return None
    row = int(rows[0])
    text = (
        f"The loss scale sits at its floor, {number(floor)}, since step {view.step(row)}, and {len(rows)} steps "
        f"overflowed there and were skipped: it cannot fall any further."
    )
    return Finding("scale at floor", text, row)


def skips(view: View) -> Finding | None:
    """Steps that were skipped more often than a loss scale's search explains."""
    skipped = view.run.skipped
    if len(skipped) < ENOUGH or not skipped.mean() > SKIPS:
        return None
    text = f"{int(skipped.sum())} of {len(skipped)} steps were skipped ({share(float(skipped.mean()))})."
    return Finding("many skips", text, int(np.argmax(skipped)))


def loss(view: View) -> Finding | None:
    """A loss that ended far above its best, or as no number."""
    values = view.run.loss
    finite = np.isfinite(values)
    if finite.sum() < ENOUGH:
        return None
    if not finite[-LAST:].any():
        row = int(np.flatnonzero(finite)[-1]) + 1
        return Finding("worse loss", f"The loss is inf or NaN since step {view.step(row)}.", row)
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values[finite], LAST), axis=1)
    best = int(medians.argmin())
    lost = (medians[-1] - medians[best]) / max(medians[0] - medians[best], medians[best])
    if not (medians[-1] > WORSE * medians[best] and lost > LOST):
        return None
    row = int(np.flatnonzero(finite)[best + LAST - 1])
    text = (
        f"The loss ended at {number(medians[-1])}, {number(medians[-1] / medians[best])} times its best, "
        f"{number(medians[best])} at step {view.step(row)} (medians of {LAST} steps)."
    )
    return Finding("worse loss", text, row)


def loss_spike(view: View) -> Finding | None:
    """A loss above any of the untrained network: an odd one, if the network had learned and went on as before."""
    values = view.run.loss
    start = float(np.nanmax(values[:5], initial=-np.inf))
    rows = np.flatnonzero(np.isfinite(values) & (values > ABOVE_START * start))
    if not len(rows) or not view.from_start or not start > 0:
        return None
    row = int(rows[0])
    before, after = (float(np.median(part)) for part in (values[max(0, row - LAST) : row], values[row + 1 :][:LAST]))
    text = f"Step {view.step(row)}: the loss was {number(float(values[row]))}, above any of the untrained network."
    if len(rows) == 1 and max(before, after) < LEARNED * start:
        text += f" It had been {number(before)}, and was {number(after)} again after it (medians of {LAST} steps)."
        return Finding("odd loss", text, row)
    return Finding("loss spike", text, row, trouble=False)
