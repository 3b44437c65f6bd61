"""One picture of a recorded run: layers by steps, the norm, the loss, the scale, and what the layers put out."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from gradops.diagnose.finding import Finding
from gradops.diagnose.report import Report, report
from gradops.diagnose.view import View
from gradops.figure import Picture
from gradops.picture import heat, histograms, lines, look
from gradops.picture.sheet import Sheet
from gradops.record.run import Run

LINE_HEIGHT, HISTOGRAM_HEIGHT, ACROSS = 1.05, 1.35, 3
MOST_HISTOGRAMS = 12
DPI = 120
# Findings that have a moment worth a line through every panel.
EVENTS = {
    "odd batch": "odd batch",
    "explosion": "gradient leaves its history",
    "single spike": "gradient leaves its history",
    "float16 overflow": "float16 overflow",
    "dead layer": "layer dead",
}


def plot(run: Run, path: str | os.PathLike[str] | None = None, layers: Sequence[str] | None = None) -> Picture:
    """Draws a recorded run.

    From the top: each layer's gradient norm by steps; the global norm with clipped and skipped steps marked; the loss;
    the loss scale, if there was one; the learning rate; and for some layers the histogram of their outputs over time.

    Args:
        run: what a `gradops.Recorder` saw.
        path: where to write the picture, in the format that its suffix names; None for nowhere.
        layers: names of the layers whose outputs are shown; None for twelve, those that the report names among them.

    Returns:
        The matplotlib figure, which a notebook shows.

    Raises:
        ValueError: the run has no steps, or a layer was not watched.
    """
    found, view = report(run), View(run)
    chosen = _chosen(run, found) if layers is None else [_index(run, layer) for layer in layers]
    panels: list[Callable[[Axes, Run], None]] = [lines.norm, lines.loss, lines.rate]
    if (run.loss_scale != 1).any():
        panels.insert(2, lines.loss_scale)
    rows = -(-len(chosen) // ACROSS)
    sheet = Sheet([heat.height(view), *[LINE_HEIGHT] * len(panels), 0.0, *[HISTOGRAM_HEIGHT] * rows])
    sheet.title(found.verdict.replace("`", ""))
    _draw_steps(sheet, view, found, panels)
    sheet.space()
    for row in range(rows):
        _draw_histograms(sheet, run, chosen[row * ACROSS : (row + 1) * ACROSS])
    if path is not None:
        sheet.figure.savefig(path, dpi=DPI)
    return sheet.figure


def _draw_steps(sheet: Sheet, view: View, found: Report, panels: list[Callable[[Axes, Run], None]]) -> None:
    """The heat map and the lines below it, all over the same steps."""
    top, bar = sheet.panel_with_bar(heat.height(view))
    sheet.figure.colorbar(heat.draw(top, view), cax=bar).ax.tick_params(labelsize=8)
    drawn = [top]
    for draw in panels:
        drawn.append(sheet.panel(LINE_HEIGHT))
        draw(drawn[-1], view.run)
        drawn[-1].set_xlim(top.get_xlim())
    drawn[-1].set_xlabel("step", color=look.INK, fontsize=9)
    for axes in drawn[:-1]:
        axes.tick_params(labelbottom=False)
    _mark(drawn, view, [finding for finding in found.findings if finding.kind in EVENTS])


def _mark(panels: list[Axes], view: View, findings: list[Finding]) -> None:
    """A line through every panel at each finding's moment, which is named beside the global norm."""
    for place, finding in enumerate(findings):
        step = view.step(finding.row or 0)
        for axes in panels:
            axes.axvline(step, color=look.EVENT, linewidth=1.2, linestyle=(0, (2, 2)))
        label = f" {EVENTS[finding.kind]}, step {step}"
        side = "right" if step > sum(panels[0].get_xlim()) / 2 else "left"
        words: dict[str, Any] = {"fontsize": 8, "color": look.INK, "va": "top", "ha": side}
        text = panels[1].text(step, 0.97 - 0.17 * place, label, transform=panels[1].get_xaxis_transform(), **words)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})


def _draw_histograms(sheet: Sheet, run: Run, layers: list[int]) -> None:
    panels = sheet.panels(HISTOGRAM_HEIGHT, ACROSS)
    for axes, layer in zip(panels, layers, strict=False):
        histograms.draw(axes, run, layer)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)


def _chosen(run: Run, found: Report) -> list[int]:
    """The layers that the report names, then others evenly from the first to the last, in their order."""
    named = [finding.layer for finding in found.findings if finding.layer in run.layers]
    wanted = [run.layers.index(name) for name in dict.fromkeys(named) if name is not None]
    even = np.linspace(0, len(run.layers) - 1, min(MOST_HISTOGRAMS, len(run.layers))).round().astype(int).tolist()
    return sorted(list(dict.fromkeys([*wanted, *even]))[:MOST_HISTOGRAMS])


def _index(run: Run, layer: str) -> int:
    if layer not in run.layers:
        raise ValueError(f"layers must be among the watched ones, got '{layer}'")
    return run.layers.index(layer)
