"""How the guide's pictures look: one set of colours that survives colour blindness, and shapes that survive grey."""

import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's colours.
LOOKS: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "linewidth": 1.8, "linestyle": "-", "marker": "o"},
    {"color": "#0072B2", "linewidth": 2.2, "linestyle": "-", "marker": "s"},
    {"color": "#E69F00", "linewidth": 1.8, "linestyle": (0, (4, 1.2)), "marker": "^"},
    {"color": "#009E73", "linewidth": 1.8, "linestyle": (0, (1, 1)), "marker": "D"},
)
INK, PALE = "#333333", "#888888"


def new_figure(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, columns, squeeze=False, **options)[0])


def label(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Title, axis labels, and as few lines as will do."""
    axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)


def save(figure: Figure, path: pathlib.Path) -> None:
    """Writes the picture without the version of matplotlib, lest an update change every file."""
    figure.savefig(path, dpi=110, metadata={"Software": None})
