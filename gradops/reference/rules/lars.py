"""LARS (You et al. 2017) with SGD's momentum, dampening and Nesterov's, and the options of timm's Lars."""

from __future__ import annotations

from typing import Any

from gradops.reference.rules.sgd import MOMENTS, decouples, update

__all__ = ["MOMENTS", "SCALE_FREE", "decouples", "grad_factor", "update"]

SCALE_FREE = False


def grad_factor(group: dict[str, Any], lr: float, weight_norm: float, grad_norm: float) -> float:
    """The trust ratio: 1 where a group is not adapted, and of weights or a gradient of 0."""
    decay = float(group["weight_decay"])
    if not decay and not group["always_adapt"]:
        return 1.0
    ratio = 1.0
    if weight_norm > 0.0 and grad_norm > 0.0:
        ratio = group["trust_coeff"] * weight_norm / (grad_norm + decay * weight_norm + group["eps"])
    if group["trust_clip"]:  # the rate times the ratio is the ratio then, and the rate at most
        return ratio / lr if ratio < lr else 1.0
    return ratio
