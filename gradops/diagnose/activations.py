"""Findings about the forward pass: outputs that overflow, and batches that are unlike the others."""

import numpy as np

from gradops.diagnose.finding import Finding, Level, number, times
from gradops.diagnose.losses import came_back
from gradops.diagnose.view import View

FLOAT16_LARGEST = 65504.0
# Before a layer overflows, its largest output is found this near to float16's.
NEAR = 16.0
# A batch is odd if the first outputs are this much larger than the weights before them have become.
ODD = 5.0
NAMED = 4


def overflow(view: View) -> Finding | None:
    """The first layer whose outputs became inf or NaN, and whether float16's range explains it."""
    run = view.run
    rows = np.flatnonzero((run.activation_nonfinite > 0).any(axis=1))
    if not len(rows):
        return None
    row = int(rows[0])
    index = int(np.flatnonzero(run.activation_nonfinite[row])[0])
    layer = run.layers[index]
    if odd_batch(view) is not None and index == 0:
        return None
    largest = run.activation_abs_max[: row + 1, index]
    reached = float(np.max(largest[np.isfinite(largest)], initial=0.0))
    also = f" It did so in {len(rows)} steps." if len(rows) > 1 else view.skipped(row) + view.samples(row)
    level: Level = "warning" if came_back(view, int(rows[-1])) else "failure"
    count = int(run.activation_nonfinite[row, index])
    began = f"Step {view.step(row)}: inf or NaN in the outputs of {view.layer(layer)} ({count:,} elements)"
    if row == 0 and view.from_start:
        text = f"{began}, first of all layers, before any update: inputs or weights begin too large.{also}"
        return Finding("nonfinite start", text, row, layer)
    if FLOAT16_LARGEST / NEAR < reached <= FLOAT16_LARGEST:
        text = (
            f"{began}, and of no layer before it. Its finite ones reach {number(reached)}, just below 65504, "
            f"the largest float16: the layer overflows float16.{also}"
        )
        return Finding("float16 overflow", text, row, layer)
    return Finding("nonfinite activation", f"{began}, first of all layers.{also}", row, layer, level=level)


def odd_batch(view: View) -> Finding | None:
    """A batch at which the first layer's outputs jumped, or were not finite, while its weights were as before."""
    run = view.run
    if not run.layers:
        return None
    first = view.layer(run.layers[0])
    broken = np.flatnonzero(run.activation_nonfinite[:, 0])
    if len(broken) and _weights_are_finite(view, int(broken[0])):
        row = int(broken[0])
        text = (
            f"Step {view.step(row)}: already the outputs of the first one, {first}, were inf or NaN, with finite "
            f"weights: the batch itself was.{view.skipped(row)}{view.samples(row)}"
        )
        return Finding("odd batch", text, row, run.layers[0], level="warning")
    for found in view.activation_leaves[0]:
        if found.ratio > ODD * _weight_change(view, found.row):
            text = (
                f"Step {view.step(found.row)}: the outputs of the first one, {first}, reached {number(found.value)}, "
                f"{times(found.ratio)} times their usual, while its weights were as before: the batch was unlike the "
                f"others.{view.samples(found.row)}"
            )
            return Finding("odd batch", text, found.row, run.layers[0], level="warning")
    return None


def _weights_are_finite(view: View, row: int) -> bool:
    """Whether the weights were finite that this step's forward pass used."""
    # A parameter that was never measured, a frozen one say, is none that broke.
    measured = np.isfinite(view.run.param_rms[:row]).any(axis=0)
    return row == 0 or bool(np.isfinite(view.run.param_rms[row - 1, measured]).all())


def spoilt_statistics(view: View) -> Finding | None:
    """Running statistics that an inf or NaN entered in a step which was skipped: it stays in them for ever."""
    run = view.run
    if not run.running:
        return None
    watched = [name for name in run.running if name in run.layers]
    hit = run.activation_nonfinite[:, [run.layers.index(name) for name in watched]] > 0
    rows = np.flatnonzero(hit.any(axis=1) & run.skipped)
    if not len(rows):
        return None
    row = int(rows[0])
    named = [view.name(name) for name, found in zip(watched, hit[row], strict=True) if found]
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    text = (
        f"Step {view.step(row)} was skipped, and the weights are safe; running_mean and running_var of "
        f"{', '.join(named[:NAMED])}{more} are not. The inf or NaN has entered them in the forward pass and stays for "
        f"ever, so that evaluation gives NaN."
    )
    return Finding("spoilt statistics", text, row, watched[int(np.flatnonzero(hit[row])[0])])


def _weight_change(view: View, row: int) -> float:
    """By what the first layer's weights had grown within ten steps when this step's forward pass used them."""
    of = view.members[view.layers.index(view.run.layers[0])] if view.run.layers[0] in view.layers else []
    now, before = view.run.param_rms[max(0, row - 1), of], view.run.param_rms[max(0, row - 11), of]
    known = np.isfinite(now) & (before > 0)
    return float(np.max(now[known] / before[known], initial=1.0))
