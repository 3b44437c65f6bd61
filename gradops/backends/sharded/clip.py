"""`clip_grad_norm_` of sharded gradients."""

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from gradops.backends.torch import math as torch_math
from gradops.backends.torch.ops import operators_for
from gradops.distributed.gather import Gathering
from gradops.distributed.shards import check_placements, is_sharded, local_tensor
from gradops.grad_values import multiply_, sizes


def clip_sharded_grads_(grads: list[Tensor], max_norm: float, norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """As `gradops.clip_grad_norm_`, for gradients of which some are DTensors; every process of theirs must call it.

    Returns:
        The norm of the full gradients before clipping: 0-d, float32 (float64 if any gradient is), the same on every
        process; a DTensor, replicated over the first sharded gradient's mesh, as torch's `clip_grad_norm_` returns one.

    Raises:
        RuntimeError: `error_if_nonfinite` and the norm is not finite; no gradient has changed. A gradient is partial.
    """
    for index, grad in enumerate(grads):
        check_placements(grad, f"gradient {index}")
    local = [local_tensor(grad) for grad in grads]
    measured = [sizes(grad) if grad.is_complex() else grad for grad in local]
    _, norms, abs_max, _ = operators_for(measured).grad_stats(measured, norm_type=norm_type)
    gathering = Gathering(grads)
    numbers = torch.nn.functional.pad(torch.stack([norms, abs_max]).to(torch_math.wide_dtype(norms.device)), (0, 1))
    gathered = gathering.gather(numbers, "nm", norm_type)
    counted = gathering.counted(gathered[:, 0, :-1])
    merged = torch_math.merge_norms(torch_math.merge_norms(counted, norm_type), norm_type)
    largest = gathered[:, 1].amax()
    norm = torch.where(largest.isfinite(), merged, largest)
    if error_if_nonfinite and not norm.isfinite():
        raise RuntimeError(
            f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
            "clipped. To disable this error and leave the gradients as they are, set `error_if_nonfinite=False`"
        )
    coef = torch_math.clip_coef(norm, max_norm)
    for grad in local:
        multiply_(grad, coef)
    torch.autograd.graph.increment_version([grad for grad, own in zip(grads, local, strict=True) if grad is not own])
    mesh = next(grad for grad in grads if is_sharded(grad)).device_mesh
    return DTensor.from_local(norm.to(norms.dtype), mesh, [Replicate()] * mesh.ndim, run_check=False)
