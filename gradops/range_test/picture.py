"""The picture of a learning-rate range test."""

import math
import os
import textwrap
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from gradops.figure import Picture

if TYPE_CHECKING:
    from gradops.range_test.curve import LRCurve, LRStep

# Okabe and Ito's colours; shapes tell the marks apart without them.
BLUE, ORANGE, VERMILION, INK, PALE = "#0072B2", "#E69F00", "#D55E00", "#333333", "#999999"
# The loss axis ends at this many times the first loss: what lies above is far away anyway.
HEADROOM = 1.6
WIDTH = 112


def draw(curve: "LRCurve", path: str | os.PathLike[str] | None) -> Picture:
    """Loss and gradient norm over the learning rate, with the notes below."""
    notes = [line for note in curve.notes() for line in textwrap.wrap(note, WIDTH, subsequent_indent="   ")]
    figure = Picture(figsize=(9, 6.2 + 0.19 * len(notes)), layout="constrained")
    loss, norm = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    _loss_panel(loss, curve)
    _norm_panel(norm, curve)
    norm.set_xlabel("learning rate\n\n" + "\n".join(notes), color=INK, loc="left", multialignment="left", fontsize=10)
    if path is not None:
        figure.savefig(path, dpi=130)
    return figure


def _loss_panel(axes: Axes, curve: "LRCurve") -> None:
    axes.set_xscale("log")
    axes.plot(curve.lrs, curve.losses, ".", color=PALE, markersize=4, label="loss of a batch")
    axes.plot(curve.lrs, curve.smoothed, color=BLUE, linewidth=2.2, label="smoothed")
    finite = [value for value in curve.smoothed if math.isfinite(value)] or [0.0, 1.0]
    low, start = min(finite), finite[0]
    top = max(HEADROOM * start, start + 0.1 * abs(start - low))
    bottom = low - 0.25 * abs(start - low) - 1e-3 * abs(start)
    axes.set_ylim(bottom, top)
    if curve.suggestion is not None:
        axes.axvline(curve.suggestion, color=VERMILION, linewidth=1.6, linestyle="--")
        on_the_right = curve.suggestion**2 > curve.lrs[0] * curve.lrs[-1]
        axes.annotate(
            f" suggested {curve.suggestion:.2g} ",
            (curve.suggestion, top),
            ha="right" if on_the_right else "left",
            va="top",
            color=VERMILION,
            fontsize=11,
        )
    marks = (("clipped", "|", ORANGE), ("capped", "_", BLUE), ("skipped", "x", VERMILION))
    for place, (name, shape, colour) in enumerate(marks):
        lrs = [step.lr for step in curve.steps if getattr(step, name)]
        height = [0.02 + 0.03 * place] * len(lrs)
        if lrs:
            label = f"{name} ({len(lrs)} of {len(curve.steps)} steps)"
            axes.plot(lrs, height, shape, color=colour, markersize=7, transform=axes.get_xaxis_transform(), label=label)
    _style(axes, "loss")
    axes.legend(frameon=False, fontsize=10, loc="upper left", labelcolor=INK)


def _norm_panel(axes: Axes, curve: "LRCurve") -> None:
    axes.set_yscale("log")
    shown: list[LRStep] = [step for step in curve.steps if 0 < step.grad_norm < float("inf")]
    axes.plot([step.lr for step in shown], [step.grad_norm for step in shown], color=INK, linewidth=1.4)
    if curve.max_norm is not None:
        axes.axhline(curve.max_norm, color=ORANGE, linewidth=1.4, linestyle=":")
        # Beside the panel, where no curve goes.
        place = (1.005, curve.max_norm)
        axes.annotate("max_norm", place, xycoords=axes.get_yaxis_transform(), va="center", color=ORANGE)
    _style(axes, "gradient norm, before clipping")


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK)
