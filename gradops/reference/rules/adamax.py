"""Adamax (Kingma and Ba 2015, section 7.1), as torch.optim defines it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_inf")
SCALE_FREE = True


def decouples(group: dict[str, Any]) -> bool:
    return False


def update(
    weight: Tensor,
    grad: Tensor,
    moments: dict[str, Tensor],
    group: dict[str, Any],
    lr: float,
    step: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weights after update number ``step``; ``weight`` and ``grad`` are regularised."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    exp_avg = (beta1 * moments["exp_avg"].double() + (1.0 - beta1) * grad).to(dtype)
    exp_inf = torch.maximum(beta2 * moments["exp_inf"].double(), grad.abs() + group["eps"]).to(dtype)
    moments["exp_avg"].copy_(exp_avg)
    moments["exp_inf"].copy_(exp_inf)
    return weight - lr / (1.0 - beta1**step) * exp_avg.double() / exp_inf.double()
