"""The specification of one parameter's update: what every rule shares, what bounds it, and what is measured of it.

`gradops.reference` strings it together with what comes before; everything is float64 from the stored values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def vector_norm(values: Tensor, norm_type: float) -> float:
    """(sum |x|^p)^(1/p) in float64, divided by the largest element first so that no power overflows or vanishes."""
    if values.numel() == 0:
        return 0.0
    magnitudes = values.double().abs()
    largest = magnitudes.max().item()
    if largest == 0.0 or not math.isfinite(largest) or norm_type == math.inf:
        return largest
    return largest * (magnitudes / largest).pow(norm_type).sum().pow(1.0 / norm_type).item()


@dataclass
class ParamState:
    """The state of one parameter; ``step`` counts applied updates, ``moments`` are the rule's, and its scalars.

    With a ``master`` the parameter is it rounded; ``compensation`` is what rounding to nearest took off the parameter;
    ``ema`` is the average of what was stored, the master where there is one.
    """

    moments: dict[str, Tensor]
    step: int = 0
    master: Tensor | None = None
    compensation: Tensor | None = None
    ema: Tensor | None = None

    def __getitem__(self, key: str) -> Tensor:
        """The tensor that an optimizer's state has under this key."""
        return self.moments[key] if key in self.moments else getattr(self, key)


def agc_coefs(weight: Tensor, grad: Tensor, ratio: float) -> Tensor:
    """Of each unit of a clamped gradient, after Brock et al. 2021, equation 3: its norm is clipped to
    ratio * max(norm of the weights, 1e-3). A unit is what has one index in the first of several dimensions.
    """
    units = weight.shape[0] if weight.ndim > 1 and weight.numel() else 1
    pairs = zip(weight.reshape(units, -1), grad.reshape(units, -1), strict=True)
    norms = [(ratio * max(vector_norm(w, 2.0), 1e-3), vector_norm(g, 2.0)) for w, g in pairs]
    coefs = torch.tensor(
        [limit / norm if norm > limit else 1.0 for limit, norm in norms], dtype=torch.float64, device=weight.device
    )
    return coefs.view(-1, *[1] * (weight.ndim - 1)) if units > 1 else coefs.view([1] * weight.ndim)


def relative_lr(param: Tensor, lr: float, cap: Any, step: int, per_rate: float = 1.0) -> float:
    """lr <= cap * max(RMS(param), floor) / per_rate, after Adafactor's relative step size (Shazeer and Stern 2018,
    section 8), with the size of what the rate multiplies after LARS (You et al. 2017).

    RMS is of the stored values before the update; ``param`` is the master where there is one. ``cap`` is None, a
    `gradops.RelativeStepCap` or anything with its attributes; it grows linearly over the first ``warmup_steps`` updates
    of the parameter, of which this is ``step``. ``per_rate`` is `update_rms`; 0 for a tensor that nothing bounds.
    """
    if cap is None or per_rate == 0.0:
        return lr
    warm = min(1.0, step / cap.warmup_steps) if cap.warmup_steps else 1.0
    return min(lr, cap.cap * warm * max(rms(param), cap.floor) / per_rate)


def rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item() if values.numel() else 0.0


def adapts(rule: Any, group: dict[str, Any], step: int) -> bool:
    """Whether the size of update number ``step`` does not depend on that of the gradients."""
    return rule.adapts(group, step) if hasattr(rule, "adapts") else rule.SCALE_FREE


def update_rms(
    rule: Any, param: Tensor, grad_norm: float, group: dict[str, Any], step: int, factor: float = 1.0
) -> float:
    """How far a rate of 1 moves an element: by about 1 where update number ``step`` is divided by the gradient's size,
    else by ``factor`` times the RMS of gradient and penalties at most. ``grad_norm`` is that of the clipped gradient.
    """
    if adapts(rule, group, step):
        return 1.0
    decay = 0.0 if rule.decouples(group) else group["weight_decay"]
    return factor * (grad_norm / math.sqrt(max(1, param.numel())) + decay * rms(param) + group.get("l1", 0.0))


def grad_factor(rule: Any, param: Tensor, grad_norm: float, group: dict[str, Any], lr: float) -> float:
    """What the rule multiplies the regularised gradient by: 1 where it has no ``grad_factor``.

    ``grad_norm`` is that of the clipped gradient; what L1 adds to it counts in full. ``lr`` is not capped yet.
    """
    if not hasattr(rule, "grad_factor"):
        return 1.0
    with_l1 = grad_norm + group.get("l1", 0.0) * math.sqrt(param.numel())
    return rule.grad_factor(group, lr, vector_norm(param, 2.0), with_l1)


def update_stats(before: Tensor, after: Tensor) -> tuple[float, float]:
    """||after - before|| / ||after||, 0 for what has not moved, and RMS(after), of stored values."""
    moved, norm = vector_norm(after.double() - before.double(), 2.0), vector_norm(after, 2.0)
    ratio = 0.0 if moved == 0.0 else moved / norm if norm else math.inf
    return ratio, norm / math.sqrt(max(1, after.numel()))


def regularise(
    rule: Any, weight: Tensor, grad: Tensor, group: dict[str, Any], lr: float, signs: Tensor
) -> tuple[Tensor, Tensor]:
    """What every rule's update begins with: ``maximize``, weight decay and L1, whose signs are of the stored values."""
    if group["maximize"]:
        grad = -grad
    if group["weight_decay"] and rule.decouples(group):
        weight = weight * (1.0 - lr * group["weight_decay"])
    elif group["weight_decay"]:
        grad = grad + group["weight_decay"] * weight
    return weight, grad + group.get("l1", 0.0) * signs


def update_param(
    rule: Any,
    param: Tensor,
    grad: Tensor,
    state: ParamState,
    group: dict[str, Any],
    lr: float,
    dtype: torch.dtype = torch.float32,
    factor: float = 1.0,
) -> None:
    """One update in place. ``rule`` is a module of `gradops.reference.rules`, ``grad`` unscaled and clipped, ``lr``
    capped, ``factor`` what `grad_factor` gives.

    Every result is rounded to ``dtype``, a kernel's; the update takes it so, and then it is rounded to what stores it.
    A ``compensation`` is added before the update and taken anew after it, 0 where the parameter is not finite: the
    compensated summation of Kahan (1965), with the sum of parameter and compensation in the place of the parameter.
    """
    state.step += 1
    updated = param if state.master is None else state.master
    weight = updated.double()
    if state.compensation is not None:
        weight = (weight + state.compensation.double()).to(dtype).double()
    weight, grad = regularise(rule, weight, grad.double(), group, lr, updated.double().sign())
    weight = rule.update(weight, factor * grad, state.moments, group, lr, state.step, dtype).to(dtype)
    updated.copy_(weight)
    param.copy_(updated)
    if state.compensation is not None:
        left = weight - param.to(dtype)
        state.compensation.copy_(torch.where(left.isfinite(), left, 0.0))


def ema_decay(ema: Any, step: int) -> float | None:
    """What the average keeps of itself in update number ``step``; None where this one is left out.

    ``ema`` is a `gradops.WeightEma` or anything with its attributes. Warm-ups: timm's and diffusers', from its inverse
    gamma and power, or ultralytics', from its time constant.
    """
    if step % ema.every:
        return None
    n = step // ema.every - ema.start
    if n <= 0:
        return 0.0
    if ema.inv_gamma is not None:
        return max(ema.min_decay, min(ema.decay, 1.0 - (1.0 + n / ema.inv_gamma) ** -ema.power))
    return ema.decay * (1.0 - math.exp(-n / ema.tau)) if ema.tau is not None else ema.decay


def average(state: ParamState, stored: Tensor, ema: Any) -> None:
    """Moves the average, in place, after the update that ``state.step`` counts; ``stored`` is what that stored."""
    decay = None if ema is None else ema_decay(ema, state.step)
    if state.ema is not None and decay is not None:
        state.ema.copy_(decay * state.ema.double() + (1.0 - decay) * stored.double())
