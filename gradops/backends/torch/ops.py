"""The operators of `gradops.ops` in torch's own operations, for devices without native code and for float64.

Signatures are the operators' schemas where no native code defines them; the arguments are described in `gradops.ops`.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradops.backends.checks import check_like, check_writable
from gradops.backends.torch import math as torch_math
from gradops.backends.torch import rules
from gradops.backends.torch.math import GradStats
from gradops.backends.torch.update import Options, Tensors, move_scalars_, update_, values_of
from gradops.policies.loss_scale import DynamicLossScale

_increment = torch.autograd.graph.increment_version


def operators_for(tensors: list[Tensor]) -> Any:
    """Who has the operators for these tensors: torch.ops.gradops, or this module for float64, which no kernel takes."""
    return sys.modules[__name__] if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.ops.gradops


def _check(tensors: list[Tensor], role: str, writable: bool, leaders: list[Tensor] | None = None) -> None:
    leaders = tensors if leaders is None else leaders
    if len(tensors) != len(leaders):
        raise ValueError(f"{role} must have one tensor a parameter, {len(leaders)}, got {len(tensors)}")
    for index, (tensor, leader) in enumerate(zip(tensors, leaders, strict=True)):
        if leader.device != leaders[0].device:
            raise ValueError(
                f"gradops: tensor 0 is on {leaders[0].device}, tensor {index} on {leader.device}; call once for each "
                "device"
            )
        check_like(tensor, leader, role, str(index))
        if writable:
            check_writable(tensor, role, str(index))


def _measured(
    grads: list[Tensor], inv_scale: Tensor | None, clip_value: float | None, norm_type: float
) -> tuple[GradStats, list[GradStats]]:
    if not norm_type > 0:
        raise ValueError(f"norm_type must be positive, got {norm_type}")
    rows = [torch_math.grad_stats(grad, inv_scale, clip_value, norm_type) for grad in grads]
    if rows:
        return torch_math.merge(rows, norm_type), rows
    zero = torch.zeros((), dtype=torch.float32, device="cpu")
    return GradStats(zero, zero, zero.long()), rows


def _returned(values: Tensor, tensors: list[Tensor]) -> Tensor:
    """What was measured of these tensors, in float64 where one of them is, else in float32."""
    return values.to(torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32)


def _inverse(grad_scale: Tensor | None) -> Tensor | None:
    return None if grad_scale is None else torch_math.inv_loss_scale(grad_scale)


def grad_stats(
    grads: list[Tensor],
    grad_scale: Tensor | None = None,
    clip_value: float | None = None,
    norm_type: float = 2.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(grads, "grads", writable=False)
    every, rows = _measured(grads, _inverse(grad_scale), clip_value, norm_type)
    if not rows:
        nothing = torch.zeros(0, dtype=torch.float32, device="cpu")
        return every.norm, nothing, nothing.clone(), nothing.long()
    norms, abs_max, nonfinite = (
        torch.stack([getattr(row, name) for row in rows]) for name in ("norm", "abs_max", "nonfinite")
    )
    return _returned(every.norm, grads), _returned(norms, grads), _returned(abs_max, grads), nonfinite


def _update_(
    rule: str,
    params: list[Tensor],
    grads: list[Tensor],
    moments: list[Tensor],
    steps: list[Tensor],
    scalars: list[Tensor],
    lr: Tensor,
    *,
    hyper: list[float],
    grad_scale: Tensor | None = None,
    clip_coef: Tensor | None = None,
    found_inf: Tensor | None = None,
    clip_value: float | None = None,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
    grad_factors: Tensor | None = None,
) -> None:
    _check(params, "params", writable=True)
    _check(grads, "grads", writable=False, leaders=params)
    columns = _moment_by_moment(moments, params)
    update_rule = rules.load(rule)
    _check_numbers("steps", steps, params)
    _check_numbers("scalars", scalars, params if hasattr(update_rule, "next_scalar") else [])
    if not params:
        return
    device = params[0].device
    skip = torch.zeros((), dtype=torch.bool, device=device) if found_inf is None else found_inf.reshape(()) != 0
    wide = torch_math.wide_dtype(device)
    numbers = torch.stack([step.reshape(()) for step in steps]).to(wide) + 1
    rates = lr.to(device, wide).reshape(()).expand_as(numbers)
    options = Options(hyper, weight_decay, decoupled, maximize, l1)
    values = values_of(scalars)
    coefs = update_rule.coefs(params, hyper, rates, numbers, *values)
    factors = _factors(update_rule, grad_factors, params)
    inv_scale = _inverse(grad_scale)
    for index, param in enumerate(params):
        grad = torch_math.clamp(torch_math.unscale(grads[index], inv_scale), clip_value)
        grad = grad if clip_coef is None else grad * clip_coef.reshape(()).to(grad.dtype)
        tensors = Tensors(param, [column[index] for column in columns])
        update_(update_rule, tensors, grad, options, rates[index], coefs[index], factors[index], skip)
        steps[index].add_(~skip)
    move_scalars_(update_rule, scalars, values, hyper, numbers, skip)
    for written in (params, steps, scalars, moments):
        _increment(written)


def _factors(rule: Any, grad_factors: Tensor | None, params: list[Tensor]) -> Sequence[Tensor | None]:
    """What each gradient is multiplied by."""
    wanted = len(params) if hasattr(rule, "grad_factor") else None
    if (None if grad_factors is None else grad_factors.numel()) != wanted:
        raise ValueError("grad_factors must have one value a parameter for a rule that scales gradients, and none else")
    return [None] * len(params) if grad_factors is None else grad_factors.to(params[0].device).unbind()


def _moment_by_moment(moments: list[Tensor], params: list[Tensor]) -> list[list[Tensor]]:
    """The moments, one list for each of them, with one tensor a parameter."""
    count = len(params)
    if len(moments) % count if count else moments:
        raise ValueError(f"moments must have one tensor a moment and parameter, of {count}, got {len(moments)}")
    columns = [moments[begin : begin + count] for begin in range(0, len(moments), count or 1)]
    for place, column in enumerate(columns):
        _check(column, f"moment {place}", writable=True, leaders=params)
    return columns


def _check_numbers(role: str, numbers: list[Tensor], params: list[Tensor]) -> None:
    """`params` are those that have such a number."""
    if len(numbers) != len(params):
        raise ValueError(f"{role} must have one tensor a parameter, {len(params)}, got {len(numbers)}")
    for number, param in zip(numbers, params, strict=True):
        if number.numel() != 1 or number.dtype != torch.float32:
            raise ValueError(f"{role} must be single Floats")
        if number.device != param.device:
            raise ValueError(f"{role} must be on the device of params, {param.device}, got {number.device}")


def clip_grad_norm_(grads: list[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
    if not max_norm >= 0:
        raise ValueError(f"max_norm must not be negative, got {max_norm}")
    _check(grads, "grads", writable=True)
    every, _ = _measured(grads, None, None, norm_type)
    if max_norm != float("inf"):
        coef = torch_math.clip_coef(every.norm, max_norm)
        _scale(grads, torch.where(every.nonfinite > 0, 1.0, coef))
    return _returned(every.norm, grads)


def unscale_(grads: list[Tensor], grad_scale: Tensor) -> Tensor:
    _check(grads, "grads", writable=True)
    inv_scale = torch_math.inv_loss_scale(grad_scale)
    every, _ = _measured(grads, inv_scale, None, float("inf"))
    _scale(grads, inv_scale)
    return (every.nonfinite > 0).float()


def _scale(grads: list[Tensor], factor: Tensor) -> None:
    for grad in grads:
        grad.copy_(torch_math.unscale(grad, factor))
    _increment(grads)


def update_loss_scale_(
    scale: Tensor,
    growth_tracker: Tensor,
    found_inf: Tensor,
    *,
    growth_factor: float = 2.0,
    backoff_factor: float = 0.5,
    growth_interval: int = 2000,
    min_scale: float = 2.0**-14,
    max_scale: float = 2.0**24,
) -> None:
    if scale.dtype != torch.float32 or scale.numel() != 1:
        raise ValueError("scale must be a single Float")
    if growth_tracker.dtype != torch.int64 or growth_tracker.numel() != 1:
        raise ValueError("growth_tracker must be a single Long")
    policy = DynamicLossScale(min_scale, growth_factor, backoff_factor, growth_interval, min_scale, max_scale)
    moved, tracker = torch_math.next_loss_scale(scale, growth_tracker, policy, found_inf.reshape(()) != 0)
    scale.copy_(moved)
    growth_tracker.copy_(tracker)
