"""The panels with one value a step: the global norm, the loss, the loss scale and the learning rate."""

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from gradops.picture import look
from gradops.record.run import Run


def norm(axes: Axes, run: Run) -> None:
    """The global norm, with the steps that were clipped or skipped marked."""
    finite = np.where(np.isfinite(run.grad_norm) & (run.grad_norm > 0), run.grad_norm, np.nan)
    axes.set_yscale("log")
    axes.plot(run.steps, finite, color=look.LINE, linewidth=1.3)
    clipped, skipped = (run.clip_coef < 1) & ~run.skipped, run.skipped
    said = []
    if run.about.get("max_norm"):
        axes.axhline(run.about["max_norm"], color=look.PALE, linewidth=1, linestyle=(0, (4, 2)))
        said.append(f"dashes: max_norm {run.about['max_norm']:g}")
    if clipped.any():
        _rug(axes, run.steps[clipped], 0.02, "|", look.CLIPPED)
        said.append(f"| clipped: {np.count_nonzero(clipped)} steps")
    if skipped.any():
        _rug(axes, run.steps[skipped], 0.96, "x", look.SKIPPED)
        said.append(f"× skipped: {np.count_nonzero(skipped)} steps")
    look.gridded(axes, f"global gradient norm{_listed(said)}")
    look.readable_decades(axes)


def loss(axes: Axes, run: Run) -> None:
    """The loss; logarithmic where it spans more than three decades."""
    _plain(axes, run, run.loss, "loss")


def loss_scale(axes: Axes, run: Run) -> None:
    """The loss scale, on powers of two, and its floor."""
    axes.set_yscale("log", base=2)
    axes.step(run.steps, run.loss_scale, where="post", color=look.LINE, linewidth=1.3)
    floor = run.about.get("min_scale")
    said = []
    if floor is not None and float(np.nanmin(run.loss_scale)) <= 16 * floor:
        axes.axhline(floor, color=look.PALE, linewidth=1, linestyle=(0, (4, 2)))
        said.append("dashes: its floor")
    look.gridded(axes, f"loss scale{_listed(said)}")


def rate(axes: Axes, run: Run) -> None:
    """The learning rate of each group."""
    for group, dashes in zip(range(run.lr.shape[1]), ("-", (0, (4, 1)), (0, (1, 1)), "-."), strict=False):
        axes.plot(run.steps, run.lr[:, group], color=look.LINE, linewidth=1.3, linestyle=dashes)
    look.gridded(axes, "learning rate" + (" of each group" if run.lr.shape[1] > 1 else ""))
    axes.set_ylim(bottom=0)


def _plain(axes: Axes, run: Run, values: NDArray[np.float32], title: str) -> None:
    finite = np.where(np.isfinite(values), values, np.nan)
    positive = finite[finite > 0]
    wide = len(positive) > 0 and positive.max() > 1e3 * positive.min()
    if wide:
        axes.set_yscale("log")
    axes.plot(run.steps, finite, color=look.LINE, linewidth=1.3)
    if wide:
        look.readable_decades(axes)  # of the values that are there by now
    lost = ~np.isfinite(values)
    measured = bool(np.isfinite(values).any())
    if measured and lost.any():
        _rug(axes, run.steps[lost], 0.96, "x", look.SKIPPED)
    look.gridded(axes, title + (", × inf or NaN" if measured and lost.any() else ""))


def _rug(axes: Axes, steps: NDArray[np.int64], at: float, marker: str, colour: str) -> None:
    place = axes.get_xaxis_transform()
    axes.plot(steps, np.full(len(steps), at), marker, color=colour, markersize=5, transform=place, clip_on=False)


def _listed(said: list[str]) -> str:
    return f" ({'; '.join(said)})" if said else ""
