"""The picture of two runs: losses and norms over the same steps, and where they part."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gradops.figure import Picture
from gradops.picture import look
from gradops.picture.sheet import Sheet
from gradops.record.run import Run

if TYPE_CHECKING:
    from gradops.diagnose.comparison import Comparison

HEIGHT, DPI = 2.2, 120
COLOURS, DASHES = (look.LINE, look.SKIPPED), ("-", (0, (5, 1.5)))


def draw(comparison: "Comparison", path: str | os.PathLike[str] | None) -> Picture:
    """Two panels with both curves each; a line where the runs first differ, and one where they are apart."""
    losses = any(np.isfinite(run.loss).any() for run in comparison.runs)
    panels = [("global gradient norm", [run.grad_norm for run in comparison.runs])]
    if losses:
        panels.insert(0, ("loss", [run.loss for run in comparison.runs]))
    sheet = Sheet([HEIGHT] * len(panels))
    sheet.title(_title(comparison))
    for title, values in panels:
        axes = sheet.panel(HEIGHT)
        _curves(axes, comparison.runs, values)
        _partings(axes, comparison)
        look.gridded(axes, title)
    axes.set_xlabel("step", color=look.INK, fontsize=9)
    _legend(sheet.figure.axes[0], comparison.names)
    if path is not None:
        sheet.figure.savefig(path, dpi=DPI)
    return sheet.figure


def _title(comparison: "Comparison") -> str:
    parting = comparison.apart or comparison.parts
    if parting is None:
        return "The runs never part."
    return f"The runs part at step {parting.step}: {parting.text}".replace("`", "")


def _curves(axes: Axes, runs: tuple[Run, Run], values: list[NDArray[np.float32]]) -> None:
    known = np.concatenate([part[np.isfinite(part) & (part > 0)] for part in values])
    if len(known) and known.max() > 30 * known.min() and all((part[np.isfinite(part)] > 0).all() for part in values):
        axes.set_yscale("log")
    for run, part, colour, dashes in zip(runs, values, COLOURS, DASHES, strict=True):
        shown = np.where(np.isfinite(part), part, np.nan)
        axes.plot(run.steps, shown, color=colour, linewidth=1.4, linestyle=dashes)
    if axes.get_yscale() == "log":
        look.readable_decades(axes)


def _partings(axes: Axes, comparison: "Comparison") -> None:
    for parting in {id(parting): parting for parting in (comparison.parts, comparison.apart)}.values():
        if parting is not None:
            axes.axvline(parting.step, color=look.EVENT, linewidth=1.2, linestyle=(0, (2, 2)))


def _legend(axes: Axes, names: tuple[str, str]) -> None:
    """The curves' names in their colours, above the panel's right end."""
    for place, (name, colour, sign) in enumerate(zip(names, COLOURS, ("──", "- -"), strict=True)):
        where: dict[str, Any] = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
        axes.text(1.0, 1.02 + 0.09 * (1 - place), f"{sign} {name}", color=colour, fontsize=9, **where)
