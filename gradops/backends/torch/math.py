"""csrc/math in torch's own operations, on tensors of any device and without waiting for it.

What depends on the gradients stays a tensor; a skipped step writes what was there.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.policies.loss_scale import DynamicLossScale

# Sums of fixed blocks: split over threads as a whole, a sum would depend on their number.
_BLOCK = 8192

# Devices whose torch has no float64. Their scalars are float32, and right to its rounding.
_WITHOUT_FLOAT64 = {"mps"}


def wide_dtype(device: torch.device) -> torch.dtype:
    """The dtype of the few numbers of a step that are not per element."""
    return torch.float32 if device.type in _WITHOUT_FLOAT64 else torch.float64


def arithmetic_of(tensor: Tensor) -> torch.dtype:
    """The dtype of an update's arithmetic: float64 for what is float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def of_each(params: list[Tensor], columns: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Of each parameter its number of every column, 0-d and rounded to its arithmetic's dtype."""
    numbers = torch.stack([column.to(columns[0].dtype) for column in columns], dim=1)
    dtypes = [arithmetic_of(param) for param in params]
    rounded = {dtype: numbers.to(dtype).unbind() for dtype in set(dtypes)}
    return [rounded[dtype][index].unbind() for index, dtype in enumerate(dtypes)]


def bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step; by expm1, because float32 would lose it for the first steps."""
    return -torch.expm1(step * (math.log(beta) if beta > 0 else -math.inf))


def lerp(average: Tensor, value: Tensor, beta: float) -> Tensor:
    """beta * average + (1 - beta) * value in the dtype of `value`, from the end that weighs more, as torch.lerp."""
    begin, coef = (average, 1.0 - beta) if beta > 0.5 else (value, -beta)
    return value.sub(average).mul_(coef).add_(begin)


@dataclass(slots=True)
class GradStats:
    """Statistics as 0-d tensors, of one tensor or of all; see csrc/math/grad_stats.h.

    Attributes:
        norm: in the wide dtype, of clamped values; NaN or inf as `abs_max` where an element is not finite.
        abs_max: in the wide dtype, before clamping; NaN if any element is NaN, else inf if any is inf.
        nonfinite: int64.
    """

    norm: Tensor
    abs_max: Tensor
    nonfinite: Tensor


def inv_loss_scale(loss_scale: Tensor) -> Tensor:
    """1 / float64(loss_scale), 0-d, in the wide dtype."""
    return loss_scale.reshape(()).to(wide_dtype(loss_scale.device)).reciprocal()


def unscale(grad: Tensor, inv_scale: Tensor | None) -> Tensor:
    """The gradient in its arithmetic's dtype, divided by the loss scale if it carries one."""
    grad = grad.to(arithmetic_of(grad))
    return grad if inv_scale is None else grad * inv_scale.to(grad.dtype)


def clamp(grad: Tensor, clip_value: float | None) -> Tensor:
    """Clamped to ±clip_value."""
    return grad if clip_value is None else grad.clamp(-clip_value, clip_value)


def block_sum(values: Tensor) -> Tensor:
    """The sum in the wide dtype, the same bits for any number of threads."""
    values = values.reshape(-1)
    wide = wide_dtype(values.device)
    while values.numel() > _BLOCK:
        whole = values.numel() // _BLOCK * _BLOCK
        blocks = values[:whole].view(-1, _BLOCK).sum(1)
        values = torch.cat([blocks.to(wide), values[whole:].sum(0, dtype=values.dtype).to(wide).reshape(1)])
    return values.sum(0, dtype=values.dtype).to(wide)


def norm_of(values: Tensor, largest: Tensor, norm_type: float) -> Tensor:
    """The norm of finite values, whose largest magnitude is known, in the wide dtype; right for huge and tiny ones."""
    if math.isinf(norm_type):
        return largest.to(wide_dtype(values.device))
    # A power of two where that makes dividing by it exact.
    scale = power_of_two(largest) if norm_type in (1.0, 2.0) else largest.clamp(min=torch.finfo(largest.dtype).tiny)
    values = values / scale
    if norm_type == 2.0:
        root = block_sum(values.square_()).sqrt()
    elif norm_type == 1.0:
        root = block_sum(values.abs_())
    else:
        root = block_sum(values.abs_().pow_(norm_type)).pow(1.0 / norm_type)
    return root * scale


def power_of_two(magnitudes: Tensor) -> Tensor:
    """The powers of two at or below finite magnitudes; none is subnormal, or dividing by it would overflow."""
    bounded = magnitudes.clamp(min=torch.finfo(magnitudes.dtype).tiny)
    bits, exponent = (torch.int64, 0x7FF << 52) if bounded.dtype == torch.float64 else (torch.int32, 0xFF << 23)
    return (bounded.view(bits) & exponent).view(bounded.dtype)


def grad_stats(grad: Tensor, inv_scale: Tensor | None, clip_value: float | None, norm_type: float) -> GradStats:
    """Statistics of one gradient as it is stored; `inv_scale` is None where it carries no loss scale."""
    if grad.numel() == 0:
        zero = torch.zeros((), dtype=wide_dtype(grad.device), device=grad.device)
        return GradStats(zero, zero, zero.long())
    values = unscale(grad, inv_scale)
    abs_max = torch.linalg.vector_norm(values, math.inf)
    nonfinite = torch.count_nonzero(values - values)  # 0 for a number, NaN for inf and NaN
    largest = abs_max if clip_value is None else abs_max.clamp(max=clip_value)
    norm = norm_of(clamp(values, clip_value), largest, norm_type)
    abs_max = abs_max.to(norm.dtype)
    return GradStats(torch.where(nonfinite > 0, abs_max, norm), abs_max, nonfinite)


def merge(rows: list[GradStats], norm_type: float) -> GradStats:
    """The statistics of all rows together; at least one."""
    nonfinite = torch.stack([row.nonfinite for row in rows]).sum()
    abs_max = torch.stack([row.abs_max for row in rows]).amax()
    norm = merge_norms(torch.stack([row.norm for row in rows]), norm_type)
    return GradStats(torch.where(nonfinite > 0, abs_max, norm), abs_max, nonfinite)


def merge_norms(norms: Tensor, norm_type: float) -> Tensor:
    """The norm of the whole from the norms of its parts, which lie along the first dimension; at least one."""
    largest = norms.amax(0)
    if math.isinf(norm_type):
        return largest
    scale = torch.where(largest > 0, largest, 1.0)
    powers = (norms / scale).pow(norm_type)
    return (block_sum(powers) if powers.dim() == 1 else powers.sum(0)).pow(1.0 / norm_type) * scale


def clip_coef(grad_norm: Tensor, max_norm: float | None) -> Tensor:
    """min(1, max_norm / (grad_norm + 1e-6)), in the wide dtype; 1 where the norm is not finite."""
    if max_norm is None or math.isinf(max_norm):
        return torch.ones((), dtype=grad_norm.dtype, device=grad_norm.device)
    coef = max_norm / (grad_norm + 1e-6)
    return torch.where(grad_norm.isfinite() & (coef < 1.0), coef, 1.0)


def update_ratio(moved: Tensor, norm: Tensor) -> Tensor:
    """||new - old|| / ||new||, 0 for what has not moved; see csrc/math/update_stats.h."""
    return torch.where(moved == 0.0, 0.0, moved / norm)


def next_loss_scale(
    scale: Tensor, growth_tracker: Tensor, policy: DynamicLossScale, skip: Tensor
) -> tuple[Tensor, Tensor]:
    """Scale and tracker after a step; see csrc/math/loss_scale.h."""
    wide = scale.to(wide_dtype(scale.device))
    smaller = (wide * policy.backoff_factor).clamp(min=policy.min_scale)
    larger = (wide * policy.growth_factor).clamp(max=policy.max_scale)
    tracker = growth_tracker + 1
    grows = tracker >= policy.growth_interval
    moved = torch.where(skip, smaller, torch.where(grows, larger, wide))
    return moved.to(scale.dtype), torch.where(skip | grows, 0, tracker)
