"""What this process holds of a tensor, and which processes hold what counts of it."""

import sys
from typing import Any, TypeGuard

from torch import Tensor


def is_sharded(tensor: Any) -> TypeGuard[Any]:
    """Whether the tensor is a DTensor, replicated ones included."""
    # Where nobody has imported it there is none, and importing it takes long.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local_tensor(tensor: Tensor) -> Tensor:
    """What this process holds of a DTensor, in the same memory; any other tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    # Not to_local(), which makes a new view of a parameter at each call.
    local = tensor._local_tensor
    return local.wait() if hasattr(local, "wait") else local


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a DTensor, by communication; any other tensor as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local_grad(param: Tensor) -> Tensor | None:
    """This process's part of the gradient, spread as the parameter is; communicates where it is spread otherwise.

    Raises:
        RuntimeError: only one of the two is a DTensor.
    """
    grad = param.grad
    if grad is None or is_sharded(param) != is_sharded(grad):
        if grad is not None:
            raise RuntimeError("gradops: a parameter and its gradient must both be DTensors, or neither")
        return grad
    if is_sharded(param) and grad.placements != param.placements:  # type: ignore[attr-defined]
        grad = grad.redistribute(param.device_mesh, param.placements)  # type: ignore[attr-defined]
    return local_tensor(grad)


def check_placements(tensor: Tensor, name: str) -> None:
    """Refuses a parameter whose local values are not part of it.

    Raises:
        RuntimeError: it waits for a sum over processes, or it is one of FSDP1's flat parameters.
    """
    if getattr(tensor, "_fsdp_flattened", False):
        raise RuntimeError(
            f"gradops: parameter '{name}' is a part of FullyShardedDataParallel's flat parameters, whose norm and inf "
            "check would be those of one process; shard the model with torch.distributed.fsdp.fully_shard"
        )
    if is_sharded(tensor) and any(placement.is_partial() for placement in tensor.placements):
        raise RuntimeError(f"gradops: parameter '{name}' has a partial placement; redistribute it first")


def check_whole_units(tensor: Tensor, name: str) -> None:
    """Refuses a parameter of which a process holds pieces of units: filters or rows, one for each index of dimension 0.

    A vector is one unit, and the processes exchange its norm.

    Raises:
        ValueError: it is sharded over another dimension.
    """
    if not is_sharded(tensor) or tensor.ndim <= 1:
        return
    shards = [placement for placement in tensor.placements if placement.is_shard()]
    if any(shard.dim != 0 for shard in shards):
        raise ValueError(
            f"clip_mode='agc': parameter '{name}' is sharded over dimension {max(s.dim for s in shards)}, so that no "
            "process has a whole filter or row of it; shard it over dimension 0, or put it into a group with "
            "'agc': False"
        )


def counted_ranks(tensor: Any) -> list[int]:
    """The global ranks whose local tensors make up the DTensor once: of replicas the first."""
    ranks = tensor.device_mesh.mesh
    for dim, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            ranks = ranks.narrow(dim, 0, 1)
    return ranks.flatten().tolist()
