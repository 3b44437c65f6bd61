"""Layer names that fit beside a picture, and rows for more layers than it has room for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ELLIPSIS = "…"


def shorten(name: str, width: int) -> str:
    """At most `width` characters: what the middle of a dotted name says is left out first, the last part last."""
    if len(name) <= width:
        return name
    parts = name.split(".")
    for kept in range(len(parts) - 2, 0, -1):
        tail = ".".join(parts[-kept:])
        short = f"{parts[0]}{ELLIPSIS}{tail}"
        if len(short) <= width:
            return short
    return ELLIPSIS + name[len(name) - width + 1 :]


def without_shared(names: Sequence[str]) -> list[str]:
    """The names without the leading parts that all of them have, such as `module.`."""
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts), default=0)
    shared = 0
    while shared < shortest - 1 and len({part[shared] for part in parts}) == 1:
        shared += 1
    return [".".join(part[shared:]) for part in parts]


class Rows(NamedTuple):
    """Rows of a picture: a name for each, and the layers that it stands for as slices of them."""

    labels: list[str]
    slices: list[slice]

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """[rows, S] of [S, layers]: the largest value of each row's layers, NaN where all are."""
        filled = np.where(np.isnan(values), -np.inf, values)
        rows = np.stack([filled[:, of].max(axis=1) for of in self.slices])
        return np.where(rows == -np.inf, np.nan, rows)


def rows_of(names: Sequence[str], most: int, width: int) -> Rows:
    """One row for each layer, or, where there are more than `most`, for neighbours of equal number.

    A row of several is named after its first layer: `stage2.0.conv1 (+2)`.
    """
    size = max(1, -(-len(names) // most))
    slices = [slice(start, min(start + size, len(names))) for start in range(0, len(names), size)]
    names, labels = without_shared(names), []
    for of in slices:
        more = f" (+{of.stop - of.start - 1})" if of.stop - of.start > 1 else ""
        labels.append(shorten(names[of.start], width - len(more)) + more)
    return Rows(labels, slices)


def columns(values: NDArray[np.float64], most: int) -> tuple[NDArray[np.float64], int]:
    """[rows, at most `most`] of [rows, S]: the largest of so many neighbouring steps, and how many these are."""
    size = max(1, -(-values.shape[1] // most))
    filled = np.where(np.isnan(values), -np.inf, values)
    padded = np.pad(filled, ((0, 0), (0, -values.shape[1] % size)), constant_values=-np.inf)
    binned = padded.reshape(len(values), -1, size).max(axis=2)
    return np.where(binned == -np.inf, np.nan, binned), size
