"""An optimizer's own loss scale: whether gradients carry it, and who of two scalers is at work."""

from typing import Any

import torch
from torch import Tensor

from gradops.numbers import number
from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import LossScale, loss_scale_policy
from gradops.stats import StepBuffers

OUT_OF_ORDER = (
    "loss_scale is set, but neither scale() nor backward() ran since the last step(): these gradients belong to an "
    "unscaled loss, and dividing them by the scale would hide that. Call optimizer.backward(loss)"
)
STALE_UNSCALE = (
    "unscale_() has been called since the last step(): gradients of another scaled loss would be added to unscaled "
    "ones. Call unscale_() after the last backward"
)
TWO_SCALERS = (
    "this optimizer has its own loss_scale and is stepped by a GradScaler too: the gradients would be unscaled twice. "
    "Use one of them"
)


class LossScaling:
    """The state of an optimizer's loss scale.

    Attributes:
        policy: what the scale follows; None for no scaling.
        loaded: what a checkpoint said before a dynamic policy was set: scale and growth tracker.
        scaled: whether a loss was scaled since the last step.
        unscaled: what `unscale_` found, if it ran since the last step: 0-d, not 0 for an inf or NaN.
    """

    def __init__(self, buffers: StepBuffers) -> None:
        self._buffers = buffers
        self.policy: None | float | DynamicLossScale = None
        self.loaded: tuple[float, int] | None = None
        self.scaled = False
        self.unscaled: Tensor | None = None

    def forget(self) -> None:
        """The gradients that carried the scale are used up, or will not be used."""
        self.scaled, self.unscaled = False, None

    def scale(self, outputs: Any) -> Any:
        """The outputs times the scale."""
        self.scaled = True
        # A copy: the live buffer moves at the next step, and autograd may still need this value then.
        factor = self._buffers.current_scale.clone()

        def scaled(value: Any) -> Any:
            if isinstance(value, Tensor):
                # Asking is cheaper than a .to() that has nothing to do.
                return value * (factor if factor.device == value.device else factor.to(value.device))
            if isinstance(value, (list, tuple)):
                return type(value)(scaled(item) for item in value)
            raise TypeError(f"outputs must be a tensor or a list or tuple of tensors, got {type(value).__name__}")

        return scaled(outputs)

    def of_step(self, optimizer: Any) -> tuple[Tensor | None, bool, Tensor | None]:
        """The loss scale, whether the gradients still carry it, and found_inf of those who looked before.

        A GradScaler sets `grad_scale` and `found_inf` of the optimizer around its step.

        Raises:
            RuntimeError: no loss was scaled, two scalers are at work, or the policy is another than that of the loss.
            TypeError, ValueError: what a GradScaler handed over is no number and no tensor of one element.
        """
        if hasattr(optimizer, "found_inf"):
            if optimizer.loss_scale is not None:
                raise RuntimeError(TWO_SCALERS)
            return self._handed(optimizer, "grad_scale"), True, self._handed(optimizer, "found_inf")
        if optimizer.loss_scale is None and not self.scaled:
            return None, True, None
        if not self.scaled:
            raise RuntimeError(OUT_OF_ORDER)
        if self.policy != loss_scale_policy(optimizer.loss_scale):
            raise RuntimeError("loss_scale was changed between scale() and step(); change it right after a step")
        return self._buffers.current_scale, self.unscaled is None, self.unscaled

    def _handed(self, optimizer: Any, name: str) -> Tensor | None:
        """What a GradScaler handed over; torch's hands over the int 0 where no parameter has a gradient."""
        value = getattr(optimizer, name)
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_meta:
                got = f"shape {list(value.shape)} on {value.device}"
                raise ValueError(f"{name} must be a number or a tensor of one element, got {got}")
            return value
        if value is None:
            return None
        given = number(name, int(value) if isinstance(value, bool) else value)
        return torch.tensor(given, dtype=torch.float32, device=self._buffers.scalars.device)

    def follow(self, loss_scale: LossScale) -> None:
        """Makes the current scale one that the policy allows, when the policy has changed."""
        policy, before = loss_scale_policy(loss_scale), self.policy
        if policy == before:
            return
        self.policy = policy
        scale = self._buffers.current_scale
        if not isinstance(policy, DynamicLossScale):
            scale.fill_(1.0 if policy is None else policy)
        elif isinstance(before, DynamicLossScale):
            scale.clamp_(policy.min_scale, policy.max_scale)
        else:
            begin, tracker = self.loaded or (policy.init_scale, 0)
            scale.fill_(begin).clamp_(policy.min_scale, policy.max_scale)
            self._buffers.growth_tracker.fill_(tracker)
            self.loaded = None

    def saved(self) -> tuple[float, int]:
        """Scale and growth tracker, for a checkpoint; waits for the device."""
        waiting = self.loaded if self.policy is None else None
        return waiting or (float(self._buffers.current_scale), int(self._buffers.growth_tracker))

    def restore(self, scale: float | None, tracker: int | None) -> None:
        """Takes what a checkpoint says; where it says nothing, the scale begins anew."""
        if isinstance(policy := self.policy, DynamicLossScale):
            self._buffers.current_scale.fill_(policy.init_scale if scale is None else scale)
            self._buffers.current_scale.clamp_(policy.min_scale, policy.max_scale)
            self._buffers.growth_tracker.fill_(tracker or 0)
        else:  # a scale of 1 is that of a run without one
            self.loaded = None if scale is None or scale == 1.0 else (scale, tracker or 0)
