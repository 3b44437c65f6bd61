"""Which samples a step's batch held: indices or names that the user gives, as one table a record."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# What stands where a step has fewer samples than the widest of the record.
NO_INDEX, NO_NAME = -1, ""

Held = Tensor | list[int | str]


def held(batch: Any) -> Held:
    """A copy of the samples that later changes of `batch` leave alone; the device is not waited for.

    Raises:
        TypeError: the samples are neither integers nor strings.
    """
    if isinstance(batch, Tensor):
        if batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool:
            raise TypeError(f"batch must hold the samples' indices or names, got a tensor of {batch.dtype}")
        return batch.detach().flatten().to("cpu", torch.int64, non_blocking=True, copy=True)
    samples = [batch] if isinstance(batch, (str, int)) else list(batch)
    for sample in samples:
        if not isinstance(sample, (str, int, np.integer)) and not (isinstance(sample, Tensor) and sample.dim() == 0):
            raise TypeError(f"batch must hold the samples' indices or names, got {type(sample).__name__}")
    return [sample if isinstance(sample, str) else int(sample) for sample in samples]


def table(batches: Iterable[Sequence[Held]]) -> NDArray[Any]:
    """[S, B], the samples of each step, which may have come in several parts; integers, or strings if any is one."""
    rows = [[sample for part in parts for sample in _listed(part)] for parts in batches]
    named = any(isinstance(sample, str) for row in rows for sample in row)
    width = max(map(len, rows), default=0)
    if named:
        return np.array([[*map(str, row), *[NO_NAME] * (width - len(row))] for row in rows], dtype=np.str_)
    filled = np.full((len(rows), width), NO_INDEX, dtype=np.int64)
    for place, row in enumerate(rows):
        filled[place, : len(row)] = row
    return filled


def joined(tables: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One table of several, as wide as the widest."""
    width = max((table.shape[1] for table in tables), default=0)
    named = any(table.dtype.kind == "U" and table.size for table in tables)
    parts: list[NDArray[Any]] = [np.empty((0, width), dtype=np.str_ if named else np.int64)]
    for part in tables:
        wide = (0, width - part.shape[1])
        if named:
            words = np.where(part == NO_INDEX, NO_NAME, part.astype(np.str_)) if part.dtype.kind == "i" else part
            parts.append(np.pad(words, ((0, 0), wide), constant_values=NO_NAME))
        else:
            parts.append(np.pad(part, ((0, 0), wide), constant_values=NO_INDEX))
    return np.concatenate(parts)


def of_row(samples: NDArray[Any]) -> list[int] | list[str]:
    """The samples of one step."""
    missing = NO_NAME if samples.dtype.kind == "U" else NO_INDEX
    return [sample.item() for sample in samples if sample != missing]


def _listed(part: Held) -> list[Any]:
    return part.tolist() if isinstance(part, Tensor) else list(part)
