"""NAdam in torch's own operations; see csrc/math/rules/nadam.h."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.backends.torch.math import bias_correction, lerp, of_each


@dataclass(slots=True)
class Coefs:
    """What a parameter's update takes besides `hyper`; 0-d, in its arithmetic's dtype."""

    eps: Tensor
    grad_size: Tensor
    exp_avg_size: Tensor


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor, scalar: Tensor) -> list[Coefs]:
    """Of each of a group's parameters."""
    _, beta2, eps, _ = hyper
    momentum, following = _momentum(hyper, step), _momentum(hyper, step + 1.0)
    product = next_scalar(hyper, step, scalar).to(step.dtype)
    root = bias_correction(beta2, step).sqrt()
    grad_size = lr * root * (1.0 - momentum) / (1.0 - product)
    exp_avg_size = lr * root * following / (1.0 - product * following)
    return [Coefs(*numbers) for numbers in of_each(params, [eps * root, grad_size, exp_avg_size])]


def next_scalar(hyper: list[float], step: Tensor, scalar: Tensor) -> Tensor:
    """The product of all momentum up to this step, rounded as torch rounds it."""
    return scalar * _momentum(hyper, step).to(scalar.dtype)


def _momentum(hyper: list[float], step: Tensor) -> Tensor:
    beta1, _, _, momentum_decay = hyper
    return beta1 * (1.0 - 0.5 * torch.pow(0.96, step * momentum_decay))


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Coefs
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    beta1, beta2, *_ = hyper
    first = lerp(moments[0], grad, beta1)
    # In this order, or the square of a huge gradient overflows.
    second = grad.mul(1.0 - beta2).mul_(grad).add_(moments[1], alpha=beta2)
    step = grad.mul(coefs.grad_size).add_(first.mul(coefs.exp_avg_size))
    return weight.sub(step.div_(second.sqrt().add_(coefs.eps))), [first, second]
