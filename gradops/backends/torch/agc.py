"""Adaptive gradient clipping (Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without
Normalization", equation 3) in torch's own operations: every unit's gradient is clipped by the size of its weights.
"""

import torch
from torch import Tensor

from gradops.backends.torch import math as torch_math

# Weights that are smaller count as this large, so that a unit of zeros may leave zero; the paper's value.
EPS = 1e-3


def unit_norms(values: Tensor) -> Tensor:
    """The L2 norm of each unit, in the wide dtype and in a shape that broadcasts against `values`.

    A unit is what makes one output: a filter or a row, all that has one index in the first dimension. A tensor of at
    most one dimension is one unit. Right for huge and tiny values; a unit with a NaN or inf has such a norm.
    """
    if values.ndim <= 1 or values.numel() == 0:
        return torch_math.grad_stats(values, None, None, 2.0).norm
    flat = values.to(torch_math.arithmetic_of(values)).reshape(values.shape[0], -1)
    scale = torch_math.power_of_two(flat.abs().amax(1, keepdim=True))
    wide = torch_math.wide_dtype(values.device)
    norms = (flat / scale).square_().sum(1, keepdim=True).to(wide).sqrt() * scale
    return norms.view(-1, *[1] * (values.ndim - 1))


def unit_coefs(weight: Tensor, grad: Tensor, ratio: float, norms: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """What each unit of a gradient is multiplied by: in its dtype, at most 1, in the shape of `unit_norms`.

    Args:
        weight: the parameter, or its master.
        grad: unscaled and clamped, in its arithmetic's dtype.
        ratio: the largest norm of a unit's gradient, relative to that of its weights.
        norms: of gradient and weights, 0-d, where these are only a part of one unit.
    """
    grad_norms, weight_norms = norms or (unit_norms(grad), unit_norms(weight))
    limit = ratio * weight_norms.clamp(min=EPS)
    return torch.where(grad_norms > limit, limit / grad_norms, 1.0).to(grad.dtype)
