"""Adaptive gradient clipping (Brock et al. 2021), to compare with: a unit's weights bound its gradient."""

from typing import Any

import torch
from torch import Tensor


class AdaptiveGradientClip:
    """A hook for `register_step_pre_hook`, after the paper's formula 3 and defaults.

    A unit is an output channel or feature, along the first dimension; of a vector or scalar it is the whole. The last
    two tensors, the classifier's, are left alone.

    Args:
        clipping: largest norm of a unit's gradient, in norms of its weights.
        floor: norm that smaller weights count as.
    """

    def __init__(self, clipping: float = 0.02, floor: float = 1e-3) -> None:
        self.clipping, self.floor = clipping, floor

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for param in params[:-2]:
            limit = self.clipping * unit_norms(param.detach()).clamp(min=self.floor)
            norms = unit_norms(param.grad)
            param.grad.mul_(torch.where(norms > limit, limit / norms, 1.0))


def unit_norms(tensor: Tensor) -> Tensor:
    """The norm of each unit, in a shape that broadcasts with the tensor's."""
    dims = tuple(range(1, tensor.dim())) if tensor.dim() > 1 else None
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
