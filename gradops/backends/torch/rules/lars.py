"""LARS in torch's own operations: SGD's update of a gradient times its trust ratio; see csrc/math/rules/lars.h."""

import torch
from torch import Tensor

from gradops.backends.torch.rules import sgd

_OF_SGD = 3  # the first of `hyper`


def grad_factor(
    hyper: list[float], weight_decay: float, lr: Tensor, weight_norms: Tensor, grad_norms: Tensor
) -> Tensor:
    """The trust ratio of each of a group's parameters."""
    trust_coeff, eps, trust_clip, always_adapt = hyper[_OF_SGD:]
    one = torch.ones_like(lr)
    if not weight_decay and not always_adapt:
        return one
    ratio = trust_coeff * weight_norms / (grad_norms + weight_decay * weight_norms + eps)
    ratio = torch.where((weight_norms > 0.0) & (grad_norms > 0.0), ratio, one)
    return torch.where(ratio < lr, ratio / lr, one) if trust_clip else ratio


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[sgd.Coefs]:
    """Of each of a group's parameters."""
    return sgd.coefs(params, hyper[:_OF_SGD], lr, step)


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: sgd.Coefs
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    return sgd.update(weight, grad, moments, hyper[:_OF_SGD], coefs)
