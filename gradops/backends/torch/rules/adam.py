"""Adam, AMSGrad and AdamW in torch's own operations; see csrc/math/rules/adam.h."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.backends.torch.math import bias_correction, lerp, of_each


@dataclass(slots=True)
class Coefs:
    """What a parameter's update takes besides `hyper`; 0-d, in its arithmetic's dtype."""

    step_size: Tensor  # lr / (1 - beta1^step)
    inv_bias_correction2_sqrt: Tensor  # 1 / sqrt(1 - beta2^step)


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Coefs]:
    """Of each of a group's parameters."""
    beta1, beta2, *_ = hyper
    columns = [lr / bias_correction(beta1, step), bias_correction(beta2, step).rsqrt()]
    return [Coefs(*numbers) for numbers in of_each(params, columns)]


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Coefs
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    beta1, beta2, eps, amsgrad = hyper
    first, second, *largest = moments
    first = lerp(first, grad, beta1)
    # In this order, or the square of a huge gradient overflows.
    second = grad.mul(1.0 - beta2).mul_(grad).add_(second, alpha=beta2)
    largest = [torch.maximum(largest[0], second)] if amsgrad else []
    denom = (largest or [second])[0].sqrt().mul_(coefs.inv_bias_correction2_sqrt).add_(eps)
    return weight.sub(first.div(denom).mul_(coefs.step_size)), [first, second, *largest]
