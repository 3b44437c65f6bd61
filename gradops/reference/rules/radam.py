"""RAdam (Liu et al. 2020), as torch.optim defines it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALE_FREE = False


def decouples(group: dict[str, Any]) -> bool:
    return bool(group["decoupled_weight_decay"])


def lengths(group: dict[str, Any], step: int) -> tuple[float, float]:
    """Of the plain average that is as spread as the second moment: at update number ``step``, and at most."""
    beta2 = float(group["betas"][1])
    longest = 2.0 / (1.0 - beta2) - 1.0
    return longest - 2.0 * step * beta2**step / (1.0 - beta2**step), longest


def adapts(group: dict[str, Any], step: int) -> bool:
    return lengths(group, step)[0] > 5.0


def update(
    weight: Tensor,
    grad: Tensor,
    moments: dict[str, Tensor],
    group: dict[str, Any],
    lr: float,
    step: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weights after update number ``step``; ``weight`` and ``grad`` are regularised. As long as the second moment
    is of too few gradients, the update is the first moment alone.
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    exp_avg = (beta1 * moments["exp_avg"].double() + (1.0 - beta1) * grad).to(dtype)
    exp_avg_sq = (beta2 * moments["exp_avg_sq"].double() + (1.0 - beta2) * grad.square()).to(dtype)
    moments["exp_avg"].copy_(exp_avg)
    moments["exp_avg_sq"].copy_(exp_avg_sq)
    direction = exp_avg.double() / (1.0 - beta1**step)
    if adapts(group, step):
        now, end = lengths(group, step)
        rectification = math.sqrt((now - 4.0) * (now - 2.0) * end / ((end - 4.0) * (end - 2.0) * now))
        direction *= rectification * math.sqrt(1.0 - beta2**step) / (exp_avg_sq.double().sqrt() + group["eps"])
    return weight - lr * direction
