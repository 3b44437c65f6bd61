"""The exchange of a step: every process learns what all of them measured."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradops.distributed.shards import counted_ranks, is_sharded

# Bytes that a process receives in a gathering at most; with more ranks or parameters the collective itself merges.
MOST_GATHERED = 2**20
# The kinds of lines, see `Gathering.gather`, of the one exchange that comes after the update: how far it has moved each
# tensor, how large the tensor is now, and the smallest factor of a unit.
UPDATES = "nnm"

# The same function; torch 2.14 renamed it.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Gathering:
    """Who takes part in the gatherings for a list of tensors, and whose numbers count for which of them.

    Numbers are gathered rather than summed by the collective, so that they are merged in the same order on every
    process and in every run, and that norms, sums and maxima travel together. Where that would be many bytes, two
    collectives reduce them: their results are the same on every process, too.

    Attributes:
        ranks: the global ranks that take part, in the order of the gathered rows.

    Args:
        tensors: one or more DTensors; others count as replicated on every rank.

    Raises:
        RuntimeError: no process group spans the tensors' meshes.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        columns: dict[Any, list[int]] = {}  # of the tensors that are spread alike
        examples = {}
        for column, tensor in enumerate(tensors):
            how = (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None
            columns.setdefault(how, []).append(column)
            examples[how] = tensor
        self.ranks, groups = _spanning([how[0] for how in columns if how is not None])
        self._groups = {group: size for group in groups if (size := dist.get_world_size(group)) > 1}
        self._spread = [
            (self.ranks[:1] if how is None else counted_ranks(examples[how]), of_how, how)
            for how, of_how in columns.items()
        ]
        self._tensors = sum(map(len, columns.values()))
        self._counts: Tensor | None = None
        self._weighed: Tensor | None = None

    def counts(self, device: torch.device) -> Tensor:
        """bool, one row a rank and one column a tensor: whether the rank's numbers of the tensor count."""
        if self._counts is None:
            place = {rank: index for index, rank in enumerate(self.ranks)}
            self._counts = torch.zeros(len(self.ranks), self._tensors, dtype=torch.bool, device="cpu")
            for ranks, columns, _ in self._spread:
                rows = torch.tensor([place[rank] for rank in ranks], dtype=torch.int64, device="cpu")
                self._counts[rows[:, None], torch.tensor(columns, dtype=torch.int64, device="cpu")] = True
        self._counts = self._counts.to(device)
        return self._counts

    def _weights(self, device: torch.device) -> Tensor:
        """What this rank's numbers weigh in a sum over all ranks, float64.

        A mesh of some of the ranks has twins of its tensors on the others.
        """
        if self._weighed is None:
            self._weighed = torch.zeros(self._tensors + 1, dtype=torch.float64, device="cpu")
            for ranks, columns, how in self._spread:
                if dist.get_rank() in ranks:
                    self._weighed[columns] = 1.0 if how is None else how[0].size() / len(self.ranks)
        self._weighed = self._weighed.to(device)
        return self._weighed

    def counted(self, line: Tensor) -> Tensor:
        """Of a gathered line, without its last column: 0 for the ranks whose numbers do not count."""
        return line if len(line) < len(self.ranks) else torch.where(self.counts(line.device), line, 0.0)

    def gather(self, numbers: Tensor, kinds: str, norm_type: float = 2.0) -> Tensor:
        """What each rank hands in, in a new first dimension; or, in one row, what all of it comes to.

        Args:
            numbers: float64, or float32 where a device has no other, of shape (lines, tensors + 1); the last column is
                of no tensor.
            kinds: of each line, how it is merged: "n" norms of parts of tensors, "s" sums and "m" maxima. Norms and
                sums are of the ranks that count, maxima of all.
            norm_type: of the first line; the other norms are L2.
        """
        received = len(self.ranks) * numbers.numel() * numbers.element_size()
        if received > MOST_GATHERED and numbers.dtype == torch.float64:
            return self._reduced(numbers, kinds, 1.0 if math.isinf(norm_type) else norm_type)
        gathered = numbers.reshape(-1)
        for group, size in self._groups.items():
            every = gathered.new_empty(size * gathered.numel())
            with _in_step(kinds):
                all_gather(every, gathered, group=group)
            gathered = every
        return gathered.view(-1, *numbers.shape)

    def _reduced(self, numbers: Tensor, kinds: str, norm_type: float) -> Tensor:
        """Of all ranks together, in one row."""
        powers = [norm_type, *[2.0] * (len(kinds) - 1)]
        lines = list(numbers)  # by number: indices in a list would be copied to the device, and waited for
        sums = [line for line, kind in enumerate(kinds) if kind != "m"]
        maxima = [line for line, kind in enumerate(kinds) if kind == "m"]
        # Squares of norms have room in float64. Other powers may not: they are of shares of the largest norm.
        in_shares = norm_type not in (1.0, 2.0)
        largest = list(self._largest([lines[line] for line in maxima + [0] * in_shares], kinds))
        if in_shares:
            scale = largest.pop()
            scale = torch.where((scale > 0.0) & (scale < math.inf), scale, 1.0)
            lines[0] = lines[0] / scale
        weights = self._weights(numbers.device)
        parts = [weights * lines[line] ** (powers[line] if kinds[line] == "n" else 1.0) for line in sums]
        totals = self._all_reduced(torch.stack(parts), dist.ReduceOp.SUM, kinds)
        for line, total in zip(sums, totals, strict=True):
            lines[line] = total ** (1.0 / powers[line]) if kinds[line] == "n" else total
        if in_shares:
            lines[0] = lines[0] * scale
        for line, value in zip(maxima, largest, strict=True):
            lines[line] = value
        return torch.stack(lines)[None]

    def _largest(self, lines: list[Tensor], kinds: str) -> Tensor:
        """Each line's maxima over all ranks; NaN where any rank has one, which a collective's maximum may pass over."""
        mine = torch.stack(lines)
        finite = mine.nan_to_num(nan=math.inf, posinf=math.inf)
        both = torch.stack([finite, mine.isnan().to(mine)])
        largest, is_nan = self._all_reduced(both, dist.ReduceOp.MAX, kinds)
        return torch.where(is_nan > 0, math.nan, largest)

    def _all_reduced(self, numbers: Tensor, operation: Any, kinds: str) -> Tensor:
        for group in self._groups:
            with _in_step(kinds):
                dist.all_reduce(numbers, operation, group=group)
        return numbers

    def gather_objects(self, value: Any) -> list[Any]:
        """What each rank hands in, of anything that can be pickled; waits for the device."""
        gathered = [value]
        for group, size in self._groups.items():
            every: list[Any] = [None] * size
            with _in_step(""):
                dist.all_gather_object(every, gathered, group=group)
            gathered = [value for part in every for value in part]
        return gathered


@contextmanager
def _in_step(kinds: str) -> Iterator[None]:
    """Says what it means when the other ranks do not answer."""
    try:
        yield
    except RuntimeError as error:
        updated = "Parameters have been updated: go on from the last checkpoint"
        here = updated if kinds == UPDATES else "Nothing has changed here"
        raise RuntimeError(
            "gradops: step() got no numbers from the other processes within the process group's timeout. Every process "
            "must call step(); one of them has raised an error before or in its step, or has ended: its output says "
            f"which. {here}"
        ) from error


def _spanning(meshes: list[Any]) -> tuple[list[int], list[Any]]:
    """The ranks of all meshes together, and the groups to gather over one after the other to reach them."""
    ranks = sorted({rank for mesh in meshes for rank in mesh.mesh.flatten().tolist()})
    if len(ranks) == dist.get_world_size():
        return ranks, [dist.group.WORLD]
    for mesh in meshes:
        # A gathering over dimension after dimension gives the ranks in the mesh's order, if groups have that order.
        if mesh.mesh.flatten().tolist() == ranks:
            return ranks, [mesh.get_group(dim) for dim in reversed(range(mesh.ndim))]
    raise RuntimeError(
        f"gradops: no process group spans the ranks {ranks} of the parameters' meshes; make the meshes parts of one "
        "that all parameters of the optimizer share, or use an optimizer for each"
    )
