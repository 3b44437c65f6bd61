"""Where the units are that `agc` clips by, as arrays on the device."""

from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from gradops.backends.call import StepCall
from gradops.backends.triton.row_table import RowTable
from gradops.backends.triton.tables import DeviceTable

# The words of a row that is not clipped by units: one unit, however long, whose factor is the first, 1.
SPARED = (2**62, 1, 0)


def units_in(tensor: Tensor) -> tuple[int, int]:
    """How many elements of a unit follow each other in memory, and how many units there are."""
    if tensor.ndim <= 1 or tensor.shape[0] == 1 or tensor.numel() == 0:
        return max(1, tensor.numel()), 1
    inner = [dim for dim in range(1, tensor.ndim) if tensor.stride(dim) < tensor.stride(0)]
    return prod(tensor.shape[dim] for dim in inner), tensor.shape[0]


class UnitTable:
    """The units of all rows, and their factors; written where something changed.

    Attributes:
        count: how many units there are.
    """

    def __init__(self) -> None:
        self._tables = DeviceTable(torch.int64), DeviceTable(torch.int32)
        self._coefs: Tensor | None = None
        self._in_graphs: list[Tensor] = []
        self.clear()

    def clear(self) -> None:
        self.count = 0
        self._linked: tuple[list[int], list[bool]] | None = None
        self._known: list[tuple[int, int] | None] | None = None
        self._words: list[int] = []
        self._rows: list[int] = []

    def arguments(self, call: StepCall, table: RowTable, device: torch.device) -> dict[str, Tensor | None]:
        """What the kernels take; None where gradients are not clipped by units."""
        if call.settings.clip_mode != "agc":
            self.clear()
            return {"units": None, "rows_of_units": None, "unit_coefs": None}
        self._link(call, table, device)
        units, rows = self._tables
        return {
            "units": units.update(self._words, device),
            "rows_of_units": rows.update(self._rows, device),
            "unit_coefs": self._coefs,
        }

    def _link(self, call: StepCall, table: RowTable, device: torch.device) -> None:
        clipped = [bool(group.get("agc", True)) for group in call.groups]
        on_device = self._coefs is not None and self._coefs.device == device
        if on_device and self._linked is not None and self._linked[0] is table.words and self._linked[1] == clipped:
            return
        self._linked = table.words, clipped
        found = [units_in(row.updated) if row.param.numel() and clipped[row.group] else None for row in call.rows]
        if found != self._known or not on_device:
            self._known = found
            counts = [0 if units is None else units[1] for units in found]
            firsts = accumulate(counts, initial=1)
            of_rows = [
                SPARED if units is None else (*units, first) for units, first in zip(found, firsts, strict=False)
            ]
            self._words = [word for words in of_rows for word in words]
            self._rows = [row for row, count in enumerate(counts) for _ in range(count)]
            self.count = sum(counts)
            self._coefs = torch.ones(1 + self.count, dtype=torch.float32, device=device)

    def captured(self) -> None:
        """A graph holds the addresses from now on."""
        for table in self._tables:
            table.captured()
        if self._coefs is not None:
            self._in_graphs.append(self._coefs)
