"""ZClip (Kumar et al. 2025), to compare with: gradients are clipped where their norm's z-score is large."""

import math
from typing import Any

import torch


class ZClip:
    """A hook for `register_step_pre_hook`, after the paper's formulas and defaults.

    Mean and variance of the norm are running averages, begun with the first `warmup_steps` norms. A norm whose z-score
    is above `z_threshold` is clipped to `mean + z_threshold^2 / z * std` and enters the averages as that.

    Args:
        decay: of the running averages.
        z_threshold: from which z-score on a norm is clipped.
        warmup_steps: norms that only begin the averages.
    """

    def __init__(self, decay: float = 0.97, z_threshold: float = 2.5, warmup_steps: int = 25) -> None:
        self.decay, self.z_threshold, self.warmup_steps = decay, z_threshold, warmup_steps
        self.first: list[float] = []
        self.mean = self.variance = 0.0

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads))
        if not math.isfinite(norm):
            return
        if len(self.first) < self.warmup_steps:
            self.first.append(norm)
            self.mean = sum(self.first) / len(self.first)
            self.variance = sum((each - self.mean) ** 2 for each in self.first) / len(self.first)
            return
        clipped = self._clipped(norm)
        if clipped < norm:
            torch._foreach_mul_(grads, clipped / norm)
        self.mean = self.decay * self.mean + (1 - self.decay) * clipped
        self.variance = self.decay * self.variance + (1 - self.decay) * (clipped - self.mean) ** 2

    def _clipped(self, norm: float) -> float:
        std = math.sqrt(self.variance)
        if norm <= self.mean + self.z_threshold * std:
            return norm
        z = (norm - self.mean) / (std + 1e-12)
        return self.mean + self.z_threshold**2 / z * std
