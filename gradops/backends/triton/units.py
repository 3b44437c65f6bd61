"""Where the units are that `triton_agc` clips by, as arrays on the device."""

from itertools import accumulate
from math import prod
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import StepCall
from gradops.backends.triton.tables import DeviceTable

# The words of a row that is not clipped by units: one unit, however long, whose factor is the first, 1.
SPARED = (2**62, 1, 0)
# What the kernel that measures the units takes of the first one's arguments.
TAKEN = ("rows", "layouts", "settings", "decision", "scalars", "MASTERS", "DTYPES", "PARAM_DTYPES")


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
        self._known: list[tuple[int, int] | None] | None = None
        self._words: list[int] = []
        self._rows: list[int] = []

    def arguments(self, call: StepCall, device: torch.device) -> dict[str, Tensor | None]:
        """What the update takes; None where gradients are not clipped by units."""
        if call.settings.clip_mode != "agc":
            self.clear()
            return {"units": None, "unit_coefs": None}
        found = [
            units_in(row.updated) if row.param.numel() and call.groups[row.group].get("agc", True) else None
            for row in call.rows
        ]
        if found != self._known or self._coefs is None or self._coefs.device != device:
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
        return {"units": self._tables[0].update(self._words, device), "unit_coefs": self._coefs}

    def measuring(self, units: dict[str, Tensor | None], first: dict[str, Any]) -> dict[str, Any]:
        """What the kernel that measures the units takes, from `arguments` and from what the first kernel took."""
        rows = self._tables[1].update(self._rows, first["rows"].device)
        taken = {name: first[name] for name in TAKEN}
        return {**taken, "units": units["units"], "rows_of_units": rows, "coefs": units["unit_coefs"]}

    def captured(self) -> None:
        """A graph holds the addresses from now on."""
        for table in self._tables:
            table.captured()
        if self._coefs is not None:
            self._in_graphs.append(self._coefs)
