"""Trainings that stand still and say nothing: every step skipped, or no step with a gradient."""

import warnings
from itertools import pairwise

import torch
from torch import Tensor

from gradops.record.history import Chunk, skipped_of

SKIPS, WITHOUT_GRADIENT = 30, 50


class StuckWarning(UserWarning):
    """Steps, but no training."""


class StuckWatch:
    """Counts steps in a row, over what is read out, and warns once of each kind."""

    def __init__(self) -> None:
        self._skipped, self._empty = 0, 0
        self._warned: set[str] = set()

    def see(self, chunk: Chunk) -> None:
        """Takes the next steps; nothing is waited for."""
        self._skipped, most = _longest(skipped_of(chunk.columns["scalars"]), self._skipped)
        if most >= SKIPS:
            self._warn(
                "skipped",
                f"{SKIPS} steps in a row were skipped, up to step {int(chunk.attempted[-1]) - 1}: nothing is learned. "
                "Their gradients were inf or NaN, or a guard took them for spikes; recorder.report() says where it "
                "began",
            )
        self._empty, most = _longest(~chunk.did_something, self._empty)
        if most >= WITHOUT_GRADIENT:
            self._warn(
                "empty",
                f"{WITHOUT_GRADIENT} calls of step() in a row found no gradient in any parameter: nothing is learned. "
                "Call backward before step, and zero_grad after it; and make sure that the optimizer has the "
                "parameters of the model that computes the loss",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, StuckWarning, stacklevel=2)


def _longest(flags: Tensor, before: int) -> tuple[int, int]:
    """How many flags in a row are set at the end, and at most, if `before` were set in front of them."""
    clear = [-1 - before, *torch.nonzero(~flags).flatten().tolist(), len(flags)]
    lengths = [right - left - 1 for left, right in pairwise(clear)]
    return lengths[-1], max(lengths)
