"""Adam, AMSGrad and AdamW in torch's own operations; see csrc/math/rules/adam.h."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.backends.torch.math import arithmetic_of


@dataclass(slots=True)
class Coefs:
    """What a parameter's update takes besides `hyper`; 0-d, in its arithmetic's dtype."""

    step_size: Tensor  # lr / (1 - beta1^step)
    inv_bias_correction2_sqrt: Tensor  # 1 / sqrt(1 - beta2^step)


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Coefs]:
    """Of each of a group's parameters."""
    beta1, beta2, *_ = hyper
    step_size = lr / _bias_correction(beta1, step)
    inv_bias_correction2_sqrt = _bias_correction(beta2, step).rsqrt()
    scalars = torch.stack([step_size, inv_bias_correction2_sqrt], dim=1)
    dtypes = [arithmetic_of(param) for param in params]
    rounded = {dtype: scalars.to(dtype).unbind() for dtype in set(dtypes)}
    return [Coefs(*rounded[dtype][index].unbind()) for index, dtype in enumerate(dtypes)]


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step; by expm1, because float32 would lose it for the first steps."""
    return -torch.expm1(step * (math.log(beta) if beta > 0 else -math.inf))


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Coefs
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    beta1, beta2, eps, amsgrad = hyper
    first, second, *largest = moments
    # From the end that weighs more, as torch.lerp.
    begin, coef = (first, 1.0 - beta1) if beta1 > 0.5 else (grad, -beta1)
    first = grad.sub(first).mul_(coef).add_(begin)
    # In this order, or the square of a huge gradient overflows.
    second = grad.mul(1.0 - beta2).mul_(grad).add_(second, alpha=beta2)
    largest = [torch.maximum(largest[0], second)] if amsgrad else []
    denom = (largest or [second])[0].sqrt().mul_(coefs.inv_bias_correction2_sqrt).add_(eps)
    return weight.sub(first.div(denom).mul_(coefs.step_size)), [first, second, *largest]
