"""What a learning-rate range test saw: the curve, the rate it suggests, and why it looks as it does."""

import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gradops import shortcuts
from gradops.notebook import html_or_none, image

if TYPE_CHECKING:
    from gradops.figure import Picture

# Weight of the past in the running mean that ends the test, per step.
MEMORY = 0.9
# Steps on either side that the shown curve averages over, since noise would hide the fall, and those whose median it
# takes before that, since one bad batch is no rise.
REACH = 4
MEDIAN_REACH = 2
# A fall of the loss smaller than this share of its start is noise.
LEAST_FALL = 0.05
MOST_OF_FALL = 0.9
# Outputs that vary less than this share of what they once varied are the same answer to every input.
ALIKE = 0.01


@dataclass(frozen=True)
class LRStep:
    """One step of the test.

    Attributes:
        lr: learning rate of the step, the largest of the groups'.
        loss: before the step, so that it shows what the steps before did.
        grad_norm: after unscaling, before clipping; inf or NaN if an element is.
        output_spread: standard deviation of the model's outputs over the batch, averaged; NaN if they are no tensor.
        clipped, capped, skipped: whether `max_norm` and `max_relative_step` bound, and whether there was no update.
    """

    lr: float
    loss: float
    grad_norm: float
    output_spread: float
    clipped: bool
    capped: bool
    skipped: bool


@dataclass(repr=False)
class LRCurve:
    """The steps of a range test, smallest learning rate first.

    Attributes:
        max_norm: at what the gradients were clipped, None for not at all.
        stop_ratio: how many times its lowest the smoothed loss had to reach for the test to end.
        optimizer: the name of its class.
        steps: the steps, up to the one that ended the test.
        scale_free: whether the size of the optimizer's updates does not depend on that of the gradients.
    """

    max_norm: float | None
    stop_ratio: float
    optimizer: str
    steps: list[LRStep] = field(default_factory=list)
    scale_free: bool = False
    _running: float = 0.0
    _finite: int = 0
    _lowest: float = math.inf
    _highest: float = -math.inf

    def append(self, step: LRStep) -> None:
        """Adds the next step."""
        self.steps.append(step)
        if not math.isfinite(step.loss):
            return  # it would be the mean for ever
        self._finite += 1
        self._running = MEMORY * self._running + (1 - MEMORY) * step.loss
        running = self._running / (1 - MEMORY**self._finite)
        self._lowest = min(self._lowest, running)
        self._highest = max(self._highest, running / self._lowest if self._lowest > 0 else 0.0)

    @property
    def lrs(self) -> list[float]:
        """Learning rates."""
        return [step.lr for step in self.steps]

    @property
    def losses(self) -> list[float]:
        """Losses as measured."""
        return [step.loss for step in self.steps]

    @property
    def diverged(self) -> bool:
        """Whether the loss left: no number any more, or over `stop_ratio` times its lowest."""
        return bool(self.steps) and (not math.isfinite(self.steps[-1].loss) or self._highest > self.stop_ratio)

    @property
    def smoothed(self) -> list[float]:
        """Medians of each step and its neighbours, averaged with triangular weights; NaN where a loss is no number."""
        losses = self.losses
        medians = [_median_around(losses, i) for i in range(len(losses))]
        return [_mean_around(medians, i) if math.isfinite(losses[i]) else math.nan for i in range(len(losses))]

    @property
    def suggestion(self) -> float | None:
        """The smallest learning rate at which the loss has made nine tenths of its fall; None if it never fell.

        A larger rate gains little within the test and is nearer to where the loss rises again.
        """
        levels = self.smoothed
        lowest = self._index_of_lowest()
        first = next((level for level in levels if math.isfinite(level)), math.nan)
        fall = first - levels[lowest]
        if not fall > LEAST_FALL * abs(first):
            return None
        return next(
            lr
            for lr, level in zip(self.lrs, levels, strict=True)
            if level <= levels[lowest] + (1 - MOST_OF_FALL) * fall
        )

    def notes(self) -> list[str]:
        """What happened, and why the curve does not rise where one would expect it to, in sentences."""
        return [note for note in (*self._outcome(), *self._reasons()) if note]

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Picture":
        """Draws the curve, its suggestion, clipped and skipped steps, the gradient norm, and the notes.

        Args:
            path: where to write the picture, in the format its suffix names; None to write none.

        Returns:
            The matplotlib figure, which a notebook shows.

        Raises:
            ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
        """
        return shortcuts.picture_of_curve(self, path, "LRCurve.plot")

    def __repr__(self) -> str:
        if not self.steps:
            return "<gradops LRCurve: no steps>"
        found = "no suggestion" if self.suggestion is None else f"suggestion {self.suggestion:.2g}"
        return f"<gradops LRCurve: {len(self.steps)} steps from {self.lrs[0]:.2g} to {self.lrs[-1]:.2g}, {found}>"

    def _repr_html_(self) -> str | None:
        # The notes stand in the picture.
        return html_or_none(lambda: image(self.plot(), str(self))) if self.steps else None

    def __str__(self) -> str:
        return "\n".join(self.notes())

    def _index_of_lowest(self) -> int:
        levels = self.smoothed
        return min(range(len(levels)), key=lambda i: levels[i] if math.isfinite(levels[i]) else math.inf)

    def _outcome(self) -> Iterator[str]:
        last = self.steps[-1]
        if not any(map(math.isfinite, self.losses)):
            yield "No suggestion: the loss was never a number. No rate does that; look at the loss and the targets."
        elif self.suggestion is None:
            yield "No suggestion: the loss never fell. Begin at a smaller rate, or look for a mistake elsewhere."
        else:
            yield f"Suggested peak learning rate: {self.suggestion:.2g}, where the loss has made most of its fall."
        if not math.isfinite(last.loss):
            yield f"The loss is {last.loss} at {last.lr:.2g}; the test ended there."
        elif self.diverged:
            yield f"The test ended at {last.lr:.2g}: the loss was over {self.stop_ratio:g} times its lowest."
        else:
            yield (
                f"The loss never rose above {self.stop_ratio:g} times its lowest, up to {last.lr:.2g}. That does not "
                "make every rate a good one:"
            )

    def _reasons(self) -> Iterator[str]:
        alike = self._same_answers()
        if alike:
            yield (
                f"From {alike[0].lr:.2g} on, the model gave every input the same answer in {len(alike)} steps. Such a "
                "model is dead, and its loss is that of guessing, which bounds the curve."
            )
        if clipped := [step for step in self.steps if step.clipped]:
            yield (
                f"{len(clipped)} of {len(self.steps)} steps were clipped to max_norm {self.max_norm:g}, which bounds "
                "what a large gradient can do."
            )
        if capped := [step for step in self.steps if step.capped]:
            yield (
                f"max_relative_step bound in {len(capped)} steps, from {capped[0].lr:.2g} on: some tensors used "
                "smaller rates than those on the axis. A test without it says more about the rate."
            )
        if skipped := [step for step in self.steps if step.skipped]:
            yield (
                f"{len(skipped)} steps were skipped for an inf or NaN, the first at {skipped[0].lr:.2g}: the weights "
                "stood still there, and so did the loss."
            )
        if not self.diverged and self.scale_free:
            yield (
                f"Steps of {self.optimizer} do not grow with the gradient: each changes a weight by about the rate, "
                "whatever it is."
            )

    def _same_answers(self) -> list[LRStep]:
        """The steps beyond the lowest loss at which the model no longer told its inputs apart."""
        lowest = self._index_of_lowest()
        usual = self.steps[lowest].output_spread
        if not math.isfinite(usual):
            return []
        return [step for step in self.steps[lowest:] if step.output_spread <= ALIKE * usual]


def _median_around(losses: list[float], place: int) -> float:
    reached = losses[max(0, place - MEDIAN_REACH) : place + MEDIAN_REACH + 1]
    return statistics.median([loss for loss in reached if math.isfinite(loss)] or [math.nan])


def _mean_around(losses: list[float], place: int) -> float:
    reached = range(max(0, place - REACH), min(len(losses), place + REACH + 1))
    weighted = [(REACH + 1 - abs(i - place), losses[i]) for i in reached if math.isfinite(losses[i])]
    return sum(weight * loss for weight, loss in weighted) / sum(weight for weight, _ in weighted)
