"""Adam (Kingma and Ba 2015), AMSGrad (Reddi et al. 2018) and AdamW (Loshchilov and Hutter 2019), as torch.optim
defines them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
SCALE_FREE = True


def decouples(group: dict[str, Any]) -> bool:
    return bool(group["decoupled_weight_decay"])


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
    second = exp_avg_sq = (beta2 * moments["exp_avg_sq"].double() + (1.0 - beta2) * grad.square()).to(dtype)
    if group["amsgrad"]:
        second = torch.maximum(moments["max_exp_avg_sq"].to(dtype), second)
        moments["max_exp_avg_sq"].copy_(second)
    moments["exp_avg"].copy_(exp_avg)
    moments["exp_avg_sq"].copy_(exp_avg_sq)
    step_size = lr / (1.0 - beta1**step)
    denom = (second.double() / (1.0 - beta2**step)).sqrt() + group["eps"]
    return weight - step_size * exp_avg.double() / denom
