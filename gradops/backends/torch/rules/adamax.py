"""Adamax in torch's own operations; see csrc/math/rules/adamax.h."""

import torch
from torch import Tensor

from gradops.backends.torch.math import bias_correction, lerp, of_each


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Tensor]:
    """Of each of a group's parameters lr / (1 - beta1^step), 0-d, in its arithmetic's dtype."""
    beta1, *_ = hyper
    return [size for (size,) in of_each(params, [lr / bias_correction(beta1, step)])]


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    beta1, beta2, eps = hyper
    first = lerp(moments[0], grad, beta1)
    largest = torch.maximum(moments[1].to(grad.dtype).mul(beta2), grad.abs().add_(eps))
    return weight.sub(first.div(largest).mul_(coefs)), [first, largest]
