"""RAdam in torch's own operations; see csrc/math/rules/radam.h."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.backends.torch.math import bias_correction, lerp, of_each


@dataclass(slots=True)
class Coefs:
    """What a parameter's update takes besides `hyper`; 0-d, in its arithmetic's dtype."""

    step_size: Tensor
    adapts: Tensor  # 1, or 0 while the update is the first moment alone


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Coefs]:
    """Of each of a group's parameters."""
    beta1, beta2, _ = hyper
    now, end = _length(hyper, step), _longest(hyper)
    adapted = now > 5.0
    rectification = ((now - 4.0) * (now - 2.0) * end / ((end - 4.0) * (end - 2.0) * now)).sqrt()
    adaptive = bias_correction(beta2, step).sqrt() * rectification
    step_size = lr / bias_correction(beta1, step) * torch.where(adapted, adaptive, 1.0)
    return [Coefs(*numbers) for numbers in of_each(params, [step_size, adapted])]


def adapts(hyper: list[float], step: Tensor) -> Tensor:
    """Whether an update is not as large as the gradients."""
    return _length(hyper, step) > 5.0


def _longest(hyper: list[float]) -> float:
    return 2.0 / (1.0 - hyper[1]) - 1.0


def _length(hyper: list[float], step: Tensor) -> Tensor:
    correction = bias_correction(hyper[1], step)
    return _longest(hyper) - 2.0 * step * (1.0 - correction) / correction


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Coefs
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    beta1, beta2, eps = hyper
    first = lerp(moments[0], grad, beta1)
    # In this order, or the square of a huge gradient overflows.
    second = grad.mul(1.0 - beta2).mul_(grad).add_(moments[1], alpha=beta2)
    denom = torch.where(coefs.adapts > 0, second.sqrt().add_(eps), 1.0)
    return weight.sub(first.div(denom).mul_(coefs.step_size)), [first, second]
