"""`clip_grad_norm_`, right where torch's overflows or poisons."""

import math
import warnings
from collections.abc import Iterable
from types import GeneratorType

import torch
from torch import Tensor

from gradops.backends.checks import DTYPES
from gradops.distributed.shards import is_sharded


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Clips the norm of the gradients in place, as torch.nn.utils.clip_grad_norm_ does.

    Unlike torch's it measures huge (1e20) and tiny (1e-25) gradients rightly, and where a gradient holds an inf or NaN
    it leaves every gradient as it was. The formula is torch's: gradients are multiplied by
    `min(1, max_norm / (norm + 1e-6))`. Complex elements count with their absolute values. Sparse gradients are measured
    as their coalesced selves.

    Args:
        parameters: a tensor or an iterable of tensors; those without a gradient are left out.
        max_norm: not negative; may be inf, to measure only.
        norm_type: positive; may be inf.
        error_if_nonfinite: raise if the norm is not finite.
        foreach: accepted for torch's sake; there is one way only.

    Returns:
        The norm before clipping: 0-d, float32 (float64 if any gradient is, or complex128), inf or NaN if a gradient
        holds one. For DTensors it is a DTensor, as torch's, replicated over the first one's mesh.

    Raises:
        ValueError: `max_norm` or `norm_type` is out of its range.
        RuntimeError: `error_if_nonfinite` and the norm is not finite; no gradient has changed.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must not be negative, got {max_norm}")
    if not float(norm_type) > 0:
        raise ValueError(f"norm_type must be positive, got {norm_type}")
    norm_type, is_generator = float(norm_type), isinstance(parameters, GeneratorType)
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if is_generator and not parameters:
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3)
    grads = [param.grad for param in parameters if param.grad is not None]
    if not grads:
        return torch.tensor(0.0, dtype=torch.float32, device="cpu")
    if any(map(is_sharded, grads)):
        from gradops.distributed.clip import clip_sharded_grads_

        return clip_sharded_grads_(grads, float(max_norm), norm_type, error_if_nonfinite)
    fused = all(
        type(g) is Tensor and g.device == grads[0].device and g.layout == torch.strided and g.dtype in DTYPES
        for g in grads
    )
    if error_if_nonfinite:
        norm = grad_norm(grads, norm_type, fused)
        if not norm.isfinite():
            raise RuntimeError(
                f"The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it cannot be "
                "clipped. To disable this error and leave the gradients as they are, set `error_if_nonfinite=False`"
            )
    if fused:
        return torch.ops.gradops.clip_grad_norm_(grads, float(max_norm), norm_type)
    norm = grad_norm(grads, norm_type, fused=False)
    coef = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    coef = torch.where(norm.isfinite(), coef, torch.ones_like(coef))
    for grad in grads:
        # As pairs of reals: a complex product with a real 1 would turn an inf into a NaN.
        pairs = grad.is_complex() and grad.layout == torch.strided and not grad.is_conj()
        (torch.view_as_real(grad) if pairs else grad).mul_(coef.to(grad.device))
    return norm


def grad_norm(grads: list[Tensor], norm_type: float, fused: bool) -> Tensor:
    """The norm over all gradients, as a 0-d tensor on the first one's device."""
    if fused:
        return torch.ops.gradops.grad_stats(grads, norm_type=norm_type)[0]
    sizes = [_sizes(grad) for grad in grads]
    dtype = torch.float64 if any(size.dtype == torch.float64 for size in sizes) else torch.float32
    device = sizes[0].device
    zero = torch.zeros((), dtype=dtype, device=device)  # of gradients without elements
    largest = torch.stack([zero, *(size.max().to(device, dtype) for size in sizes if size.numel())]).max()
    if norm_type == math.inf:
        return largest
    # Measured in units of the largest element, so that no power leaves the range of the dtype.
    unit = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    norms = [torch.linalg.vector_norm(size.to(dtype) / unit.to(size.device), norm_type).to(device) for size in sizes]
    return torch.linalg.vector_norm(torch.stack(norms), norm_type) * unit


def _sizes(grad: Tensor) -> Tensor:
    """The absolute values of a gradient's elements, without the zeros that a sparse one leaves out."""
    if grad.layout == torch.sparse_coo:
        grad = grad.coalesce().values()
    elif grad.layout != torch.strided:
        grad = grad.values()
    return grad.abs()
