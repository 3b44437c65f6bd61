"""The heat map of layers by steps."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gradops.diagnose.view import View
from gradops.picture import look
from gradops.picture.names import columns, rows_of

MOST_ROWS, MOST_COLUMNS, WIDTH = 48, 1200, 30
ROW_HEIGHT = 0.16


def height(view: View) -> float:
    """Inches that the map wants."""
    return ROW_HEIGHT * max(6, min(MOST_ROWS, len(view.layers)))


def draw(axes: Axes, view: View) -> Any:
    """The logarithm of each layer's gradient norm; returns what the colour bar is made of."""
    rows = rows_of(view.layers, MOST_ROWS, WIDTH)
    norms = np.where(np.isfinite(view.norms), view.norms, np.nan)
    with np.errstate(divide="ignore"):
        decades = np.log10(rows.largest(norms))
    values, size = columns(np.where(np.isfinite(decades), decades, np.nan), MOST_COLUMNS)
    colours = matplotlib.colormaps[look.COLOURS].with_extremes(bad=look.NOTHING)
    first, last = view.step(0), view.step(0) + size * values.shape[1]
    edges = (first - 0.5, last - 0.5, len(values) - 0.5, -0.5)
    low, high = _range(values)
    image = axes.imshow(values, cmap=colours, aspect="auto", interpolation="nearest", extent=edges, vmin=low, vmax=high)
    look.bare(axes, "gradient norm of each layer, logarithm to base 10 (pale: no gradient; ×: inf or NaN)")
    axes.set_yticks(range(len(rows.labels)), rows.labels, fontsize=7.5)
    _mark_nonfinite(axes, view, rows.slices)
    return image


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    """Of the colours: dying layers may fall by any number of decades, which would leave the rest one colour."""
    known = values[np.isfinite(values)]
    if not len(known):
        return 0.0, 1.0
    return float(np.percentile(known, 1)), float(max(np.percentile(known, 1) + 0.1, known.max()))


def _mark_nonfinite(axes: Axes, view: View, slices: list[slice]) -> None:
    hit = np.stack([(view.run.nonfinite[:, of] > 0).any(axis=1) for of in view.members], axis=1)
    for row, of in enumerate(slices):
        steps = view.run.steps[hit[:, of].any(axis=1)]
        axes.plot(steps, np.full(len(steps), row), "x", color=look.SKIPPED, markersize=4, clip_on=False)
