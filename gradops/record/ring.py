"""Memory for a run of steps on the optimizer's device, read out in one asynchronous copy."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

# Every column starts at a multiple of it, so that a row can be viewed as any dtype.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Column:
    """What each step writes under one name: a tensor of this dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Snapshot:
    """The rows of a ring on their way to the CPU."""

    def __init__(self, block: Tensor, columns: dict[str, tuple[Column, int]]) -> None:
        self._columns = columns
        self._event: torch.Event | None = None
        if block.device.type == "cpu":
            self._block = block.clone()
            return
        self._block = torch.empty(block.shape, dtype=block.dtype, device="cpu", pin_memory=torch.cuda.is_available())
        self._block.copy_(block, non_blocking=True)
        self._event = torch.Event(block.device)
        self._event.record()

    def arrived(self) -> bool:
        """Whether `columns` would return at once."""
        return self._event is None or self._event.query()

    def columns(self) -> dict[str, Tensor]:
        """The columns on the CPU, rows first; waits for the copy."""
        if self._event is not None:
            self._event.synchronize()
        return {name: _typed(self._block, column, start) for name, (column, start) in self._columns.items()}


class Ring:
    """Rows of named columns in one block of memory, one row a step.

    A row that nobody has written is NaN in floating-point columns and 0 in others.

    Args:
        columns: what a row holds.
        capacity: rows until it is full; at least 1.
        device: where it lives.
    """

    def __init__(self, columns: Iterable[Column], capacity: int, device: torch.device) -> None:
        self._layout: dict[str, tuple[Column, int]] = {}
        width = 0
        for column in columns:
            self._layout[column.name] = (column, width)
            width += -(-column.size * column.dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        self._block = torch.zeros((capacity, width), dtype=torch.uint8, device=device)
        self._typed = {name: _typed(self._block, column, start) for name, (column, start) in self._layout.items()}
        # Made when first used and kept: making views takes longer than writing to them.
        self._rows: list[dict[str, Tensor] | None] = [None] * capacity
        self.filled = 0
        self._clear(capacity)

    @property
    def full(self) -> bool:
        return self.filled == len(self._rows)

    def row(self) -> dict[str, Tensor]:
        """The columns of the row that is being written."""
        row = self._rows[self.filled]
        if row is None:
            row = self._rows[self.filled] = {name: values[self.filled] for name, values in self._typed.items()}
        return row

    def advance(self) -> None:
        """Ends the row; the ring must then be taken out if it is full."""
        self.filled += 1

    def take(self) -> Snapshot:
        """Starts the copy of the finished rows to the CPU, and empties the ring; the device is not waited for."""
        rows, self.filled = self.filled, 0
        snapshot = Snapshot(self._block[:rows], self._layout)
        self._clear(rows)
        return snapshot

    def _clear(self, rows: int) -> None:
        for values in self._typed.values():
            values[:rows].fill_(math.nan if values.is_floating_point() else 0)


def _typed(block: Tensor, column: Column, start: int) -> Tensor:
    """One column of a block of bytes: [rows, *shape]."""
    end = start + column.size * column.dtype.itemsize
    return block[:, start:end].view(column.dtype).view(len(block), *column.shape)
