"""Trainings that stand still, as a recorder sees them: step by step."""

from itertools import pairwise

import torch
from torch import Tensor

from gradops.one_pass.stuck import SKIPS, WITHOUT_GRADIENT, warn_of_empty_steps, warn_of_skips
from gradops.record.history import Chunk, skipped_of


class StuckWatch:
    """Counts steps in a row, over what is read out, and warns once of each kind."""

    def __init__(self) -> None:
        self._skipped, self._empty = 0, 0
        self._warned: set[str] = set()

    def see(self, chunk: Chunk) -> None:
        """Takes the next steps; nothing is waited for."""
        self._skipped, most = _longest(skipped_of(chunk.columns["scalars"]), self._skipped)
        if most >= SKIPS and self._first("skipped"):
            warn_of_skips(SKIPS, int(chunk.attempted[-1]) - 1)
        self._empty, most = _longest(~chunk.did_something, self._empty)
        if most >= WITHOUT_GRADIENT and self._first("empty"):
            warn_of_empty_steps(WITHOUT_GRADIENT)

    def _first(self, kind: str) -> bool:
        """Whether nothing of the kind was warned of; from now on it is."""
        first = kind not in self._warned
        self._warned.add(kind)
        return first


def _longest(flags: Tensor, before: int) -> tuple[int, int]:
    """How many flags in a row are set at the end, and at most, if `before` were set in front of them."""
    clear = [-1 - before, *torch.nonzero(~flags).flatten().tolist(), len(flags)]
    lengths = [right - left - 1 for left, right in pairwise(clear)]
    return lengths[-1], max(lengths)
