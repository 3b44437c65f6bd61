"""Findings about what the user set: clipping, by this optimizer or before it, and the loss scale."""

import numpy as np
from numpy.typing import NDArray

from gradops.diagnose.finding import Finding, number, share
from gradops.diagnose.view import View

NEARLY_EVERY = 0.9
ENOUGH = 20
AT_FLOOR = 5
SKIPS = 0.1
# A norm that is the same in so many steps, to so many parts, was made so: nothing but a clip does that.
SAME, CLOSE = 0.5, 2e-3
LEAST_CLIPPED = 10


def clipping(view: View) -> Finding | None:
    """Clipping that bound on nearly every step, which makes `max_norm` a learning rate."""
    coefs = view.run.clip_coef[~view.run.skipped]
    if view.run.about.get("clip_mode") == "agc":
        return None  # its coefficient is the smallest of many units'
    if len(coefs) < ENOUGH or not np.mean(coefs < 1) > NEARLY_EVERY:
        return None
    norm = view.run.about.get("max_norm")
    text = (
        f"Clipping bound in {share(float(np.mean(coefs < 1)))} of the steps"
        + (f" (max_norm {norm:g}, median gradient norm {number(_median_norm(view))})" if norm else "")
        + ": max_norm then sets the size of every gradient, as a learning rate does, and guards against nothing."
    )
    return Finding("clipping binds", text, level="note")


def _median_norm(view: View) -> float:
    norms = view.run.grad_norm[np.isfinite(view.run.grad_norm)]
    return float(np.median(norms)) if len(norms) else np.nan


def clipped_before(view: View) -> Finding | None:
    """Gradients that somebody had clipped before the step: while they were scaled, or after unscaling them."""
    run = view.run
    taken = ~run.skipped & np.isfinite(run.grad_norm) & (run.grad_norm > 0) & np.isfinite(run.loss_scale)
    norms, scales = (values[taken].astype(np.float64) for values in (run.grad_norm, run.loss_scale))
    if len(norms) < LEAST_CLIPPED:
        return None
    (share_scaled, scaled), (share_plain, plain) = _most_common(norms * scales), _most_common(norms)
    row = int(np.flatnonzero(taken)[0])
    # Where the scale never moved both are constant, and people clip to round numbers.
    if share_scaled > SAME and scales.max() > 1 and (share_scaled > share_plain or not _is_round(plain)):
        text = (
            f"In {share(share_scaled)} of the steps the gradients had a norm of {number(scaled)} before they were "
            f"unscaled, and of {number(float(np.median(norms)))} after it: something clips them while they still carry "
            f"the loss scale, clip_grad_norm_(..., {number(scaled)}) say, and makes them that much too small."
        )
        return Finding("scaled clipping", text, row)
    if share_plain > SAME and _is_round(plain) and plain < 1e6:
        text = (
            f"In {share(share_plain)} of the steps the gradients came with a norm of {number(plain)}: something clips "
            f"them before the step, clip_grad_norm_ say, so that this record does not know how large they were."
        )
        return Finding("clipped before", text, row, level="note")
    return None


def _most_common(values: NDArray[np.float64]) -> tuple[float, float]:
    """The share of the values that are nearly the same, as many as are, and that value."""
    ascending = np.sort(values)
    counts = np.searchsorted(ascending, ascending * (1 + CLOSE), side="right") - np.arange(len(ascending))
    first = int(counts.argmax())
    return float(counts[first]) / len(values), float(ascending[first + int(counts[first]) // 2])


def _is_round(value: float) -> bool:
    """Whether a person would have written it: two digits say it."""
    return bool(abs(float(f"{value:.1e}") - value) <= CLOSE * value)


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
    return Finding("many skips", text, int(np.argmax(skipped)), level="warning")
