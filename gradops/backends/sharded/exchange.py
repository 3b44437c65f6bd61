"""The exchange of a step between measuring and deciding: csrc/cpu/shared_stats.h for the backends in Python.

Nothing waits for the device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.backends.torch import math as torch_math
from gradops.distributed.gather import UPDATES, Gathering

# The largest magnitude of a row without a gradient.
TAKES_NO_PART = -1.0


@dataclass(slots=True)
class RowStats:
    """What is known of each row; every tensor has one value a row.

    Attributes:
        norms: in the wide dtype, of the gradients, clamped; 0 without one.
        abs_max: in the wide dtype, before clamping; `TAKES_NO_PART` without a gradient.
        nonfinite: int64.
        params: in the wide dtype, L2 norms of what is updated; None where nothing compares them.
        units: in the wide dtype, L2 norms of the clamped gradients and of what is updated, for rows that are one unit,
            which clip_mode="agc" clips as a whole; 0 for the others. None where nothing is clipped by units.
    """

    norms: Tensor
    abs_max: Tensor
    nonfinite: Tensor
    params: Tensor | None = None
    units: tuple[Tensor, Tensor] | None = None

    @property
    def taking_part(self) -> Tensor:
        """bool, whether the row has a gradient on any process."""
        return self.abs_max != TAKES_NO_PART

    def lines(self) -> tuple[list[Tensor], str]:
        """What travels, and how each line of it is merged."""
        lines, kinds = [self.norms, self.abs_max, self.nonfinite], "nms"
        for some in (() if self.params is None else (self.params,), self.units or ()):
            lines, kinds = [*lines, *some], kinds + "n" * len(some)
        return lines, kinds


class Exchange:
    """The processes that have other parts of a plan's parameters; every one of them must exchange at every step.

    Args:
        params: the optimizer's, of which some are DTensors.

    Attributes:
        numels: how many elements each of them has, on all processes together.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self._gathering = Gathering(params)
        self.numels = [param.numel() for param in params]
        self._roots: Tensor | None = None

    @property
    def processes(self) -> int:
        return len(self._gathering.ranks)

    def roots(self, device: torch.device) -> Tensor:
        """The square roots of `numels`, by which a norm becomes an RMS; in the wide dtype."""
        if self._roots is None or self._roots.device != device:
            sizes = [max(1, numel) ** 0.5 for numel in self.numels]
            self._roots = torch.tensor(sizes, dtype=torch_math.wide_dtype(device), device="cpu").to(device)
        return self._roots

    def share_stats(self, mine: RowStats, found_inf: Tensor | None, norm_type: float) -> tuple[RowStats, Tensor]:
        """What is known of the whole rows, from what each process knows of its parts.

        Args:
            mine: of this process.
            found_inf: one value, not 0 if somebody has seen an inf or NaN on this process before.
            norm_type: of `mine.norms`.

        Returns:
            The same on every process: of the rows, and whether any process has seen an inf or NaN, bool, 0-d.
        """
        lines, kinds = mine.lines()
        numbers = self._table(lines)
        if found_inf is not None:
            numbers[1, -1] = found_inf.reshape(()) != 0
        gathered = self._gathering.gather(numbers, kinds, norm_type)
        largest = gathered[:, 1].amax(0)
        abs_max = largest[:-1]
        # One that only a replica has seen, whose numbers do not count, is one all the same.
        seen = ~abs_max.isfinite()
        nonfinite = self._counted(gathered, 2).sum(0).long()
        nonfinite = torch.where(seen, nonfinite.clamp(min=1), nonfinite)
        norms = torch.where(seen, abs_max, torch_math.merge_norms(self._counted(gathered, 0), norm_type))
        others = iter([self._merged(gathered, line) for line in range(3, len(lines))])
        params = None if mine.params is None else next(others)
        units = None if mine.units is None else (next(others), next(others))
        return RowStats(norms, abs_max, nonfinite, params, units), seen.any() | (largest[-1] > 0)

    def share_updates(self, moved: Tensor, params: Tensor, smallest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same three of the whole rows, from those of this process's parts.

        Args:
            moved: in the wide dtype, L2 norms of what the step has added to each row.
            params: of what it has stored.
            smallest: 0-d, the smallest factor of a unit.
        """
        numbers = self._table([moved, params, torch.zeros_like(moved)])
        numbers[2, -1] = -smallest
        gathered = self._gathering.gather(numbers, UPDATES)
        return self._merged(gathered, 0), self._merged(gathered, 1), -gathered[:, 2, -1].amax()

    @staticmethod
    def _table(lines: list[Tensor]) -> Tensor:
        """The lines, and behind each a column that is of no row."""
        wide = torch_math.wide_dtype(lines[0].device)
        return torch.nn.functional.pad(torch.stack([line.to(wide) for line in lines]), (0, 1))

    def _counted(self, gathered: Tensor, line: int) -> Tensor:
        return self._gathering.counted(gathered[:, line, :-1])

    def _merged(self, gathered: Tensor, line: int) -> Tensor:
        """L2 norms of the whole rows."""
        return torch_math.merge_norms(self._counted(gathered, line), 2.0)
