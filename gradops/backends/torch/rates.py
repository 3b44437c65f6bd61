"""Each tensor's learning rate: the group's, what a guard leaves of it, and the bound of `max_relative_step`; and what
rules that compare norms multiply its gradient by.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Row, state_of
from gradops.backends.torch.math import wide_dtype
from gradops.backends.torch.update import Options
from gradops.policies.relative_step import RelativeStepCap
from gradops.update_rule import UpdateRule, number_of


@dataclass(frozen=True)
class Sizes:
    """What is compared of a group's rows: one value a row, in the wide dtype.

    Attributes:
        weights: the RMS of what is updated.
        grads: the RMS of the gradient, clipped.
        roots: the square roots of how many elements there are, by which an RMS becomes a norm.
    """

    weights: Tensor
    grads: Tensor
    roots: Tensor


@dataclass(frozen=True)
class Rates:
    """What a group's rows are updated with: one value a row, in the wide dtype.

    Attributes:
        lr: the rate.
        step: the number of the update.
        capped: bool; whether the cap has made the rate smaller.
        grad_factors: what the gradients are multiplied by; None for 1.
    """

    lr: Tensor
    step: Tensor
    capped: Tensor
    grad_factors: Tensor | None


def lr_of(group: Mapping[str, Any]) -> float | Tensor:
    """The group's rate; raises TypeError for what is no number."""
    lr = group["lr"]
    return lr if isinstance(lr, Tensor) else number_of(group, "lr")


def rates(
    rule: UpdateRule,
    code: Any,
    lr: float | Tensor,
    lr_factor: Tensor,
    rows: list[Row],
    options: Options,
    cap: RelativeStepCap | None,
    sizes: Sizes | None,
) -> Rates:
    """The rates of one group's rows, of which there is at least one.

    Args:
        rule: the update rule.
        code: its module of `gradops.backends.torch.rules`.
        lr: the group's.
        lr_factor: the guard's, 0-d.
        rows: they.
        options: the group's.
        cap: on their rates.
        sizes: theirs; None where `Settings.measures_params` says that nothing compares them.
    """
    step = _numbers(rows)
    if isinstance(lr, Tensor) and lr.device == step.device:
        rate = lr.reshape(()).to(step.dtype).expand_as(step)
    else:
        rate = torch.full_like(step, float(lr))
    rate, factors = rate * lr_factor, None
    if rule.needs_norms and sizes is not None:
        grad_norms = (sizes.grads + options.l1) * sizes.roots  # L1 adds so much at most
        factors = code.grad_factor(options.hyper, options.weight_decay, rate, sizes.weights * sizes.roots, grad_norms)
    if cap is None or sizes is None:
        return Rates(rate, step, torch.zeros_like(step, dtype=torch.bool), factors)
    limits = _limits(cap, step, sizes)
    if not rule.scale_free:
        per_rate = _update_rms(code, step, sizes, options, factors)
        limits = torch.where(per_rate > 0.0, limits / per_rate, torch.inf)
    return Rates(torch.minimum(rate, limits), step, limits < rate, factors)


def _limits(cap: RelativeStepCap, step: Tensor, sizes: Sizes) -> Tensor:
    """How far the cap lets each row move; see `gradops.RelativeStepCap`."""
    limits = cap.cap * sizes.weights.clamp(min=cap.floor)
    return limits * (step / cap.warmup_steps).clamp(max=1.0) if cap.warmup_steps else limits


def _update_rms(code: Any, step: Tensor, sizes: Sizes, options: Options, factors: Tensor | None) -> Tensor:
    """How far a rate of 1 moves each row: by about 1 where an update adapts, else as far as its gradient at most."""
    decay = 0.0 if options.decoupled else options.weight_decay
    moved = sizes.grads + decay * sizes.weights + options.l1
    moved = moved if factors is None else moved * factors
    if hasattr(code, "adapts"):
        return torch.where(code.adapts(options.hyper, step), 1.0, moved)
    return moved


def _numbers(rows: list[Row]) -> Tensor:
    """The number of each row's update, from 1."""
    steps = torch.stack([state_of(row)["step"].reshape(()) for row in rows])
    return steps.to(wide_dtype(rows[0].param.device)) + 1
