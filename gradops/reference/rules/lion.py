"""Lion (Chen et al. 2023, algorithm 2): moves every weight by the rate, against the sign of gradient and momentum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg",)
SCALE_FREE = True


def decouples(group: dict[str, Any]) -> bool:
    return True


def update(
    weight: Tensor,
    grad: Tensor,
    moments: dict[str, Tensor],
    group: dict[str, Any],
    lr: float,
    step: int,
    dtype: torch.dtype,
) -> Tensor:
    """The weights after an update; ``weight`` and ``grad`` are regularised."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    exp_avg = moments["exp_avg"].double()
    direction = (beta1 * exp_avg + (1.0 - beta1) * grad).sign()
    moments["exp_avg"].copy_((beta2 * exp_avg + (1.0 - beta2) * grad).to(dtype))
    return weight - lr * direction
