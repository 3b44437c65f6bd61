"""The picture of a benchmark: bars for models, lines of cost against work for scaling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from gradops.bench import machine, scaling
from gradops.bench.formats import duration
from gradops.bench.rows import Row
from gradops.bench.stream import BYTES_PER_PARAM, STREAMS

# Okabe and Ito's colours, told apart with any kind of colour vision.
_COLOURS = (
    ("gradops", "#0072B2"),
    ("torch.compile", "#CC79A7"),
    ("torch fused", "#D55E00"),
    ("torch foreach", "#E69F00"),
    ("torch loop", "#999999"),
)
_OTHER = "#009E73"
INK, PALE = "#333333", "#777777"


def colour(recipe: str) -> str:
    """One hue for each way of stepping, with and without a scaler."""
    return next((hue for start, hue in _COLOURS if recipe.startswith(start)), _OTHER)


def is_scaled(recipe: str) -> bool:
    """Whether the recipe divides by a loss scale."""
    return "GradScaler" in recipe or "loss scale" in recipe


def is_stream(row: Row) -> bool:
    """Whether the row is no optimizer, but what the memory can do."""
    return row.recipe in STREAMS


def draw(rows: list[Row], head: dict[str, Any], path: Path, by_work: bool) -> None:
    """Writes the picture to `path`, in the format its suffix names."""
    timed = [row for row in rows if row.seconds]
    figure = _lines(timed) if by_work else _bars(timed)
    FigureCanvasAgg(figure)
    figure.supxlabel(f"{machine.sentence(head)}\n{head['command']}", fontsize=7.5, color=PALE, x=0.01, ha="left")
    figure.savefig(path, dpi=130)


def _bars(rows: list[Row]) -> Figure:
    measured = list(dict.fromkeys((row.case, row.optimizer) for row in rows))
    panels_rows = [[row for row in rows if (row.case, row.optimizer) == one] for one in measured]
    heights = [0.9 + 0.27 * len(of_panel) for of_panel in panels_rows]
    figure = Figure(figsize=(9, 0.9 + sum(heights)), layout="constrained")
    panels = figure.subplots(len(measured), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, of_panel in zip(panels, panels_rows, strict=True):
        _bar_panel(axes, of_panel)
    figure.suptitle("Optimizer phase: unscale, check, norm, clip, update", fontsize=13, color=INK, x=0.01, ha="left")
    return figure


def _bar_panel(axes: Axes, rows: list[Row]) -> None:
    streams = [row.seconds for row in rows if is_stream(row) and row.seconds]
    bars = [row for row in rows if not is_stream(row)]
    places, seconds = np.arange(len(bars)), [row.seconds or 0.0 for row in bars]
    axes.barh(places, seconds, 0.72, color=[colour(row.recipe) for row in bars])
    axes.set_yticks(places, [row.recipe for row in bars], fontsize=9, color=INK)
    axes.invert_yaxis()
    for place, row, width in zip(places, bars, seconds, strict=True):
        slower = f"   {row.gradops_speedup:.2f}x the time of gradops" if row.gradops_speedup else ""
        text = f"{duration(width)}{slower}"
        axes.annotate(text, (width, place), (5, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
    if streams:
        axes.axvline(min(streams), color=PALE, linewidth=1.2, linestyle=":")
        text = f"reading and writing {BYTES_PER_PARAM} bytes a parameter"
        axes.annotate(
            text,
            (min(streams), -0.5),
            (4, 3),
            textcoords="offset points",
            va="bottom",
            fontsize=8,
            color=PALE,
            annotation_clip=False,
        )
    axes.set_xlim(0, 1.45 * max(seconds))
    axes.xaxis.set_major_formatter(_SECONDS)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=PALE)
    first = rows[0]
    title = f"{first.case}, {first.optimizer}: {first.params:,} {first.dtype} parameters in {first.tensors:,} tensors"
    axes.set_title(title, loc="left", fontsize=10.5, color=INK, pad=20)


_SECONDS = FuncFormatter(lambda value, _: duration(value) if value else "0")


def _lines(rows: list[Row]) -> Figure:
    figure = Figure(figsize=(11, 6.2), layout="constrained")
    by_params, by_tensors = figure.subplots(1, 2)
    bandwidth = memory_bandwidth(rows)
    growing = [row for row in rows if row.tensors == scaling.TENSORS]
    _line_panel(by_params, growing, lambda row: row.params, f"parameters, in {scaling.TENSORS} tensors", bandwidth)
    splitting = [row for row in rows if row.params == scaling.PARAMS]
    _line_panel(
        by_tensors, splitting, lambda row: row.tensors, f"tensors, of {scaling.PARAMS:,} parameters together", bandwidth
    )
    by_params.set_ylabel("one optimizer phase", color=INK)
    handles, labels = by_params.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8.5)
    figure.suptitle("Cost against work", fontsize=13, color=INK, x=0.01, ha="left")
    return figure


def memory_bandwidth(rows: list[Row]) -> float | None:
    """Bytes a second of the plain stream in the largest case: of memory, and not of the caches."""
    streams = [row for row in rows if is_stream(row) and row.bytes_per_second]
    largest = max((row.params for row in streams), default=0)
    return max((row.bytes_per_second or 0.0 for row in streams if row.params == largest), default=None)


def _line_panel(axes: Axes, rows: list[Row], work: Callable[[Row], int], title: str, bandwidth: float | None) -> None:
    for recipe in dict.fromkeys(row.recipe for row in rows if not is_stream(row)):
        points = sorted((work(row), row.seconds) for row in rows if row.recipe == recipe)
        style = "--" if is_scaled(recipe) else ":" if "max_relative_step" in recipe else "-"
        width = 2.4 if recipe.startswith("gradops") else 1.5
        axes.plot(
            *zip(*points, strict=True),
            style,
            color=colour(recipe),
            linewidth=width,
            marker="o",
            markersize=3,
            label=recipe,
        )
    if bandwidth:
        points = sorted({(work(row), BYTES_PER_PARAM * row.params / bandwidth) for row in rows})
        axes.plot(
            *zip(*points, strict=True),
            color="black",
            linewidth=1,
            linestyle=(0, (1, 2)),
            label=f"memory's bandwidth, {BYTES_PER_PARAM} bytes/param",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(_SECONDS)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.tick_params(colors=PALE, labelsize=9)
