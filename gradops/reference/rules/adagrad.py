"""Adagrad (Duchi et al. 2011), as torch.optim defines it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("sum",)
SCALE_FREE = True


def decouples(group: dict[str, Any]) -> bool:
    return False


def start(name: str, group: dict[str, Any]) -> float:
    return float(group["initial_accumulator_value"])


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
    total = (moments["sum"].double() + grad.square()).to(dtype)
    moments["sum"].copy_(total)
    decayed = lr / (1.0 + (step - 1) * group["lr_decay"])
    return weight - decayed * grad / (total.double().sqrt() + group["eps"])
