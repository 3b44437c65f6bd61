"""RMSprop (Tieleman and Hinton 2012), centered (Graves 2013) or not, as torch.optim defines it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("square_avg", "momentum_buffer", "grad_avg")
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
    """The weights after an update; ``weight`` and ``grad`` are regularised.

    A variance that rounding made negative counts as 0.
    """
    alpha, momentum = float(group["alpha"]), float(group["momentum"])
    square_avg = (alpha * moments["square_avg"].double() + (1.0 - alpha) * grad.square()).to(dtype)
    moments["square_avg"].copy_(square_avg)
    variance = square_avg.double()
    if group["centered"]:
        grad_avg = (alpha * moments["grad_avg"].double() + (1.0 - alpha) * grad).to(dtype)
        moments["grad_avg"].copy_(grad_avg)
        variance = (variance - grad_avg.double().square()).clamp(min=0.0)
    direction = grad / (variance.sqrt() + group["eps"])
    if momentum > 0.0:
        buffer = (momentum * moments["momentum_buffer"].double() + direction).to(dtype)
        moments["momentum_buffer"].copy_(buffer)
        direction = buffer.double()
    return weight - lr * direction
