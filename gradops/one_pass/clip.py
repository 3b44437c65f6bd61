"""`clip_grad_norm_`, right where torch's overflows or poisons."""

import math
import warnings
from collections.abc import Iterable
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor

from gradops.backends.checks import DTYPES
from gradops.distributed.shards import is_sharded
from gradops.grad_values import multiply_, sizes
from gradops.numbers import number


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
    `min(1, max_norm / (norm + 1e-6))`. Complex elements count with their absolute values. Sparse gradients are
    coalesced for the measurement.

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
        TypeError: `max_norm` or `norm_type` is no number.
        ValueError: `max_norm` or `norm_type` is out of its range.
        RuntimeError: `error_if_nonfinite` and the norm is not finite; no gradient has changed.
    """
    max_norm, norm_type = _limit(max_norm), _order(norm_type)
    is_generator = isinstance(parameters, GeneratorType)
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if is_generator and not parameters:
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3)
    grads = [param.grad for param in parameters if param.grad is not None]
    if not grads:
        return torch.tensor(0.0, dtype=torch.float32, device="cpu")
    if any(map(is_sharded, grads)):
        from gradops.backends.sharded.clip import clip_sharded_grads_

        return clip_sharded_grads_(grads, max_norm, norm_type, error_if_nonfinite)
    device = grads[0].device
    fused = all(
        type(g) is Tensor and g.device == device and g.layout == torch.strided and g.dtype in DTYPES and not g.is_neg()
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
        return torch.ops.gradops.clip_grad_norm_(grads, max_norm, norm_type)
    norm = grad_norm(grads, norm_type, fused=False)
    coef = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    coef = torch.where(norm.isfinite(), coef, torch.ones_like(coef))
    for grad in grads:
        multiply_(grad, coef)
    return norm


def _limit(max_norm: Any) -> float:
    limit = number("max_norm", max_norm)
    if not limit >= 0:
        raise ValueError(f"max_norm must not be negative, got {limit}; inf to measure only")
    return limit


def _order(norm_type: Any) -> float:
    order = float(norm_type) if isinstance(norm_type, str) else number("norm_type", norm_type)  # torch takes "inf"
    if not order > 0:
        raise ValueError(f"norm_type must be positive, got {order}")
    return order


def grad_norm(grads: list[Tensor], norm_type: float, fused: bool) -> Tensor:
    """The norm over all gradients, as a 0-d tensor on the first one's device."""
    if fused:
        return torch.ops.gradops.grad_stats(grads, norm_type=norm_type)[0]
    measured = [sizes(grad) for grad in grads]
    dtype = torch.float64 if any(size.dtype == torch.float64 for size in measured) else torch.float32
    device = measured[0].device
    zero = torch.zeros((), dtype=dtype, device=device)  # of gradients without elements
    largest = torch.stack([zero, *(size.max().to(device, dtype) for size in measured if size.numel())]).max()
    if norm_type == math.inf:
        return largest
    # Divided by the largest element, so that no power leaves the range of the dtype.
    scale = torch.where((largest > 0) & largest.isfinite(), largest, torch.ones_like(largest))
    norms = [
        torch.linalg.vector_norm(size.to(dtype) / scale.to(size.device), norm_type).to(device) for size in measured
    ]
    return torch.linalg.vector_norm(torch.stack(norms), norm_type) * scale
