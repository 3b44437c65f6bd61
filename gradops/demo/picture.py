"""The picture of the demo: norm, loss and dead units over the steps, one line per run."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from gradops.demo.training import Run, Task, guessing_loss

# Okabe and Ito's colours, told apart with any kind of colour vision; widths and dashes tell them apart in grey.
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "linewidth": 1.5, "linestyle": "-"},
    {"color": "#E69F00", "linewidth": 1.6, "linestyle": (0, (4, 1.2))},
    {"color": "#0072B2", "linewidth": 2.4, "linestyle": "-"},
)
INK = "#333333"
PALE = "#777777"
LABEL_GAP = 0.085
TALL_SPIKE = 30.0


def draw(task: Task, runs: list[Run], path: pathlib.Path) -> None:
    """Writes the picture to `path`, in the format its suffix names."""
    figure = Figure(figsize=(9, 8.6), layout="constrained")
    FigureCanvasAgg(figure)
    norm, loss, dead = figure.subplots(3, 1, sharex=True)
    _norm_panel(norm, runs)
    _loss_panel(loss, runs, guessing_loss(task))
    _dead_panel(dead, runs)
    figure.suptitle(
        f"One CNN, one seed, {runs[0].name} with three settings  (learning rate up to {task.lr:g}, {task.precision})",
        fontsize=13,
        color=INK,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=130)


def _norm_panel(axes: Axes, runs: list[Run]) -> None:
    norms = [_finite([step.grad_norm for step in run.steps]) for run in runs]
    axes.set_yscale("log")
    _lines(axes, norms, "gradient norm")
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.12)
    for run, values, look in zip(runs, norms, LOOKS, strict=True):
        if run.first_spike is None or not run.largest_norm > TALL_SPIKE * np.nanmedian(values):
            continue
        place = (int(np.nanargmax(values)) + 1, run.largest_norm)
        text = f"{run.name}: {_plain_number(run.largest_norm)}"
        label = axes.annotate(text, place, (6, -4), textcoords="offset points", color=look["color"], fontsize=10)
        # Another run's spike may stand behind the words.
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    _name_ends(axes, runs, norms)


def _loss_panel(axes: Axes, runs: list[Run], guessing: float) -> None:
    losses = [_smooth(_finite([step.loss for step in run.steps])) for run in runs]
    axes.axhline(guessing, color=PALE, linewidth=1, linestyle=":")
    axes.annotate(
        "guessing blindly",
        (0.93 * len(losses[0]), guessing),
        (0, -6),
        textcoords="offset points",
        color=PALE,
        fontsize=10,
        ha="right",
        va="top",
    )
    _lines(axes, losses, "loss")
    axes.set_ylim(0, 1.5 * guessing)
    _name_ends(axes, runs, losses)


def _dead_panel(axes: Axes, runs: list[Run]) -> None:
    units = runs[0].units
    dead = [np.array([float(step.dead_units) for step in run.steps]) for run in runs]
    _lines(axes, dead, f"dead units in the head, of {units}")
    axes.set_ylim(0, 1.04 * units)
    axes.set_xlabel("step", color=INK)
    _name_ends(axes, runs, dead)


def _lines(axes: Axes, series: list[np.ndarray], title: str) -> None:
    for values, look in zip(series, LOOKS, strict=True):
        axes.plot(np.arange(1, len(values) + 1), values, **look)
        if _ends_in_nan(values) and np.isfinite(values).any():
            last = int(np.flatnonzero(np.isfinite(values))[-1])
            axes.plot([last + 1], [values[last]], "x", color=look["color"], markersize=9, markeredgewidth=2.5)
    axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlim(0, max(map(len, series)))
    axes.tick_params(colors=INK)


def _name_ends(axes: Axes, runs: list[Run], series: list[np.ndarray]) -> None:
    """Writes each run's name where its line ends, moved up where names would lie on each other."""
    to_height = (axes.transData + axes.transAxes.inverted()).transform
    ends = [values[np.isfinite(values)][-1:] for values in series]
    heights = [float(np.clip(to_height((1, end[0]))[1], 0, 1)) if len(end) else 1.0 for end in ends]
    free = 0.0
    for i in sorted(range(len(runs)), key=lambda i: (heights[i], -i)):
        height = max(heights[i], free)
        free = height + LABEL_GAP
        name = f"{runs[i].name}: NaN" if _ends_in_nan(series[i]) else runs[i].name
        place: dict[str, Any] = {"transform": axes.transAxes, "va": "center"}
        axes.text(1.01, height, name, color=LOOKS[i]["color"], fontsize=10.5, **place)


def _ends_in_nan(values: np.ndarray) -> bool:
    return not np.isfinite(values[-1])


def _finite(values: list[float]) -> np.ndarray:
    array = np.array(values)
    return np.where(np.isfinite(array), array, np.nan)


def _plain_number(value: float) -> str:
    if value < 1e5:
        return f"{float(f'{value:.2g}'):,g}"
    return f"$10^{{{int(np.floor(np.log10(value)))}}}$"


def _smooth(values: np.ndarray, window: int = 5) -> np.ndarray:
    """Mean of the last `window` values, so that the lines of noisy batches can be told apart."""
    padded = np.concatenate([np.full(window - 1, values[0]), values])
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")
