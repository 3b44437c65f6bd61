"""Histograms of a layer's outputs over time: every value has its place, negative, huge, inf and NaN ones too.

In the manner of fastai's `color_dim`, whose histograms leave out what is negative, large or not finite.
"""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gradops.picture import look
from gradops.picture.names import shorten, without_shared
from gradops.record.run import Run

MOST_COLUMNS = 300
TITLE = 26
TICKS = 7


def shares(run: Run, layer: int) -> NDArray[np.float64]:
    """[B + 1, S]: the share of a layer's outputs in each bin, and last that of inf and NaN; NaN where not measured."""
    counts = np.concatenate(
        [run.activation_histogram[:, layer], run.activation_nonfinite[:, layer, None]], axis=1
    ).astype(np.float64)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0).T


def draw(axes: Axes, run: Run, layer: int) -> None:
    """One layer's panel."""
    values = shares(run, layer)
    measured = ~np.isnan(values[0])
    values, steps = values[:, measured], run.steps[measured]
    thin = max(1, -(-values.shape[1] // MOST_COLUMNS))
    colours = matplotlib.colormaps[look.COLOURS].with_extremes(bad=look.NOTHING)
    decades = np.log10(np.where(values > 0, values, np.nan))[:, ::thin]
    if decades.shape[1]:
        edges = (steps[0] - 0.5, steps[-1] + 0.5, -0.5, len(decades) - 0.5)
        axes.imshow(
            decades, cmap=colours, aspect="auto", origin="lower", interpolation="nearest", extent=edges, vmin=-4, vmax=0
        )
    axes.axhline(len(values) - 1.5, color="white", linewidth=1.5)
    look.bare(axes, f"outputs of {shorten(without_shared(run.layers)[layer], TITLE)}")
    places, labels = ticks(run.histogram_edges)
    axes.set_yticks([*places, len(values) - 1], [*labels, "inf, NaN"], fontsize=6.5)
    axes.tick_params(labelsize=6.5)
    axes.title.set_fontsize(9)


def ticks(edges: NDArray[np.float32], form: str = "{}$10^{{{}}}$") -> tuple[list[float], list[str]]:
    """Places, in bins, and labels of 0 and of some powers of ten between the edges.

    Args:
        edges: ascending.
        form: of a label, filled with the sign and the exponent.
    """
    largest = np.abs(edges[np.isfinite(edges) & (edges != 0)])
    first, last = np.ceil(np.log10(largest.min())), np.floor(np.log10(largest.max()))
    apart = max(1, round((last - first) / (TICKS // 2)))
    exponents = [int(exponent) for exponent in np.arange(last, first - 0.5, -apart)][: TICKS // 2]
    values = [(sign * 10.0**exponent, sign, exponent) for exponent in exponents for sign in (-1, 1)]
    inside = sorted(value for value in values if edges[0] <= value[0] <= edges[-1])
    labelled = [(value, form.format("-" if sign < 0 else "", exponent)) for value, sign, exponent in inside]
    if edges[0] < 0 < edges[-1]:
        labelled.append((0.0, "0"))
    # Edges are as far apart in bins as they are in their order.
    places = np.interp([value for value, _ in labelled], edges, np.arange(len(edges)) + 0.5)
    return [float(place) for place in places], [label for _, label in labelled]
