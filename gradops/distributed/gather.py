"""The one gathering of a step: every process learns what all of them measured."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradops.distributed.shards import counted_ranks, is_sharded

# The same function; torch 2.14 renamed it.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Gathering:
    """Who takes part in the gatherings for a list of tensors, and whose numbers count for which of them.

    Numbers are gathered rather than summed by the collective, so that they are merged in the same order on every
    process and in every run, and that sums, maxima and counts travel together.

    Attributes:
        ranks: the global ranks that take part, in the order of the gathered rows.

    Args:
        tensors: one or more DTensors; others count as replicated on every rank.

    Raises:
        RuntimeError: no process group spans the tensors' meshes.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        meshes = [tensor.device_mesh for tensor in tensors if is_sharded(tensor)]
        self.ranks, self._groups = _spanning(meshes)
        place = {rank: index for index, rank in enumerate(self.ranks)}
        self._counts = torch.zeros(len(self.ranks), len(tensors), dtype=torch.bool, device="cpu")
        for column, tensor in enumerate(tensors):
            for rank in counted_ranks(tensor) if is_sharded(tensor) else self.ranks[:1]:
                self._counts[place[rank], column] = True

    def counts(self, device: torch.device) -> Tensor:
        """bool, one row a rank and one column a tensor: whether the rank's numbers of the tensor count."""
        self._counts = self._counts.to(device)
        return self._counts

    def gather(self, numbers: Tensor) -> Tensor:
        """What each rank hands in, in a new first dimension; one collective where one group spans all ranks."""
        gathered = numbers.contiguous().reshape(-1)
        for group in self._groups:
            size = dist.get_world_size(group)
            if size > 1:
                every = gathered.new_empty(size * gathered.numel())
                _all_gather(every, gathered, group=group)
                gathered = every
        return gathered.view(-1, *numbers.shape)


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
