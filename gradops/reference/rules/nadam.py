"""NAdam (Dozat 2016), as torch.optim defines it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALARS = {"mu_product": 1.0}
SCALE_FREE = True


def decouples(group: dict[str, Any]) -> bool:
    return bool(group["decoupled_weight_decay"])


def momentum(group: dict[str, Any], step: int) -> float:
    return float(group["betas"][0]) * (1.0 - 0.5 * 0.96 ** (step * group["momentum_decay"]))


def update(
    weight: Tensor,
    grad: Tensor,
    moments: dict[str, Tensor],
    group: dict[str, Any],
    lr: float,
    step: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weights after update number ``step``; ``weight`` and ``grad`` are regularised. The product of all momentum is
    float32, whatever ``dtype`` is, and the momentum is rounded to that before it is multiplied.
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    exp_avg = (beta1 * moments["exp_avg"].double() + (1.0 - beta1) * grad).to(dtype)
    exp_avg_sq = (beta2 * moments["exp_avg_sq"].double() + (1.0 - beta2) * grad.square()).to(dtype)
    moments["exp_avg"].copy_(exp_avg)
    moments["exp_avg_sq"].copy_(exp_avg_sq)
    mu, mu_next = momentum(group, step), momentum(group, step + 1)
    product = moments["mu_product"].mul_(torch.tensor(mu, dtype=torch.float32, device="cpu")).item()
    denom = (exp_avg_sq.double() / (1.0 - beta2**step)).sqrt() + group["eps"]
    of_grad = (1.0 - mu) / (1.0 - product) * grad
    of_exp_avg = mu_next / (1.0 - product * mu_next) * exp_avg.double()
    return weight - lr * (of_grad + of_exp_avg) / denom
