"""SGD with momentum (Sutskever et al. 2013), dampening and Nesterov's momentum, as torch.optim defines them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOMENTS = ("momentum_buffer",)
SCALE_FREE = False


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
    """The weights after update number ``step``, the first of which takes the gradient undampened for the buffer;
    ``weight`` and ``grad`` are regularised.
    """
    momentum = float(group["momentum"])
    if not momentum:
        return weight - lr * grad
    buffer = moments["momentum_buffer"].double()
    buffer = (grad if step == 1 else momentum * buffer + (1.0 - group["dampening"]) * grad).to(dtype)
    moments["momentum_buffer"].copy_(buffer)
    direction = grad + momentum * buffer.double() if group["nesterov"] else buffer.double()
    return weight - lr * direction
