"""Trainings that stand still and say nothing: every step skipped, or no step with a gradient."""

import warnings
from typing import NamedTuple

SKIPS, WITHOUT_GRADIENT = 30, 50
# An optimizer without a recorder looks at its counters every so many calls of step().
LOOK_EVERY = 30


class StuckWarning(UserWarning):
    """Steps, but no training."""


def warn_of_skips(skips: int, up_to: int) -> None:
    """Says that no step was taken while so many were skipped; `up_to` is the last of them, counted from 0."""
    message = (
        f"{skips} steps in a row were skipped, up to step {up_to}: nothing is learned. Their gradients were inf or "
        "NaN, or a guard took them for spikes; the report of a gradops.Recorder says where it began"
    )
    warnings.warn(message, StuckWarning, stacklevel=3)


def warn_of_empty_steps(calls: int) -> None:
    """Says that so many calls of step() found nothing to do."""
    message = (
        f"{calls} calls of step() in a row found no gradient in any parameter: nothing is learned. Call backward "
        "before step, and zero_grad after it; and make sure that the optimizer has the parameters of the model that "
        "computes the loss"
    )
    warnings.warn(message, StuckWarning, stacklevel=3)


class Progress(NamedTuple):
    """Where an optimizer stood when a step was last seen to be taken.

    Attributes:
        calls: of step(). taken, skipped: its counters.
        warned: of what.
    """

    calls: int = 0
    taken: int = 0
    skipped: int = 0
    warned: tuple[str, ...] = ()

    def seen(self, calls: int, taken: int, skipped: int) -> "Progress":
        """What follows after a look at the counters; warns once of each kind of standstill."""
        if taken != self.taken:
            return Progress(calls, taken, skipped, self.warned)
        skips, since = skipped - self.skipped, calls - self.calls
        if skips >= SKIPS and "skips" not in self.warned:
            warn_of_skips(skips, taken + skipped - 1)
            return self._replace(warned=(*self.warned, "skips"))
        if skips == 0 and since >= WITHOUT_GRADIENT and "empty" not in self.warned:
            warn_of_empty_steps(since)
            return self._replace(warned=(*self.warned, "empty"))
        return self
