"""An optimizer's own loss scale: scaling losses, unscaling gradients, and who of two scalers is at work."""

from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Plan
from gradops.backends.torch.ops import operators_for
from gradops.numbers import number
from gradops.one_pass.attributes import CheckedAttributes
from gradops.one_pass.groups import local_grads
from gradops.one_pass.watcher import StepWatcher
from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import loss_scale_policy

_OUT_OF_ORDER = (
    "loss_scale is set, but neither scale() nor backward() ran since the last step(): these gradients belong to an "
    "unscaled loss, and dividing them by the scale would hide that. Call optimizer.backward(loss)"
)
_STALE_UNSCALE = (
    "unscale_() has been called since the last step(): gradients of another scaled loss would be added to unscaled "
    "ones. Call unscale_() after the last backward"
)
_TWO_SCALERS = (
    "this optimizer has its own loss_scale and is stepped by a GradScaler too: the gradients would be unscaled twice. "
    "Use one of them"
)


class LossScaled(CheckedAttributes):
    """What an optimizer does with its `loss_scale`, and with the scale that a GradScaler hands it."""

    # A GradScaler sets both around step().
    grad_scale: Tensor | None
    found_inf: Tensor

    # On the class: a copy of an optimizer is not watched.
    _watchers: tuple[StepWatcher, ...] = ()

    _plan: Plan
    _scale_policy: None | float | DynamicLossScale
    # What a checkpoint said, loaded before a dynamic policy was set: scale and growth tracker.
    _loaded_scale: tuple[float, int] | None = None
    _scaled: bool  # a loss was scaled since the last step
    _unscaled: Tensor | None  # found_inf of unscale_(), if it ran since then

    def _plan_settings(self) -> Any:
        raise NotImplementedError

    def _bind(self) -> None:
        raise NotImplementedError

    @torch._disable_dynamo
    def scale(self, outputs: Any) -> Any:
        """Multiplies a loss, or an iterable of losses, by the loss scale; returned unchanged without one.

        Args:
            outputs: a tensor or a (nested) list or tuple of tensors.

        Returns:
            The same structure, scaled. The scale is a float32 scalar on the device, never synchronised.

        Raises:
            RuntimeError: `unscale_` was called since the last step.
        """
        if self.loss_scale is None:
            return outputs
        if self._unscaled is not None:
            raise RuntimeError(_STALE_UNSCALE)
        if not self._scaled:
            self._plan_settings()
            self._follow_policy()
        self._scaled = True
        # A copy: the live buffer moves at the next step, and autograd may still need this value then.
        factor = self._buffers.current_scale.clone()

        def scaled(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value * factor.to(value.device)
            if isinstance(value, (list, tuple)):
                return type(value)(scaled(item) for item in value)
            raise TypeError(f"outputs must be a tensor or a list or tuple of tensors, got {type(value).__name__}")

        return scaled(outputs)

    @torch._disable_dynamo
    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """`self.scale(loss).backward(**kwargs)`: the line that replaces `loss.backward()`."""
        for watcher in self._watchers:
            watcher.loss(loss)
        before = self._scaled
        try:
            self.scale(loss).backward(**kwargs)
        except BaseException:
            self._scaled = before  # or a step after an unscaled backward would divide by the scale
            raise

    @torch.no_grad()
    def unscale_(self) -> None:
        """Divides the gradients by the loss scale in place, for code that reads or edits them before the step.

        The step then does not unscale again. An inf or NaN seen here makes the step skip even if it is edited away, as
        with torch.amp.GradScaler. Without a loss scale there is nothing to do.

        Raises:
            RuntimeError: no loss was scaled since the last step, the gradients are unscaled already, or a gradient does
                not fit its parameter.
        """
        if self.loss_scale is None:
            return
        if not self._scaled:
            raise RuntimeError(_OUT_OF_ORDER)
        if self._unscaled is not None:
            raise RuntimeError("unscale_() has already been called since the last step()")
        self._bind()
        self._plan.params_without_state()  # checks every gradient before the first is changed
        grads = local_grads(self.param_groups)
        self._unscaled = operators_for(grads).unscale_(grads, self._buffers.current_scale)

    def _scaling(self) -> tuple[Tensor | None, bool, Tensor | None]:
        """The loss scale, whether the gradients still carry it, and found_inf of those who looked before."""
        if hasattr(self, "found_inf"):
            if self.loss_scale is not None:
                raise RuntimeError(_TWO_SCALERS)
            return self._handed("grad_scale"), True, self._handed("found_inf")
        if self.loss_scale is None and not self._scaled:
            return None, True, None
        if not self._scaled:
            raise RuntimeError(_OUT_OF_ORDER)
        if self._scale_policy != loss_scale_policy(self.loss_scale):
            raise RuntimeError("loss_scale was changed between scale() and step(); change it right after a step")
        return self._buffers.current_scale, self._unscaled is None, self._unscaled

    def _handed(self, name: str) -> Tensor | None:
        """What a GradScaler handed over; torch's hands over the int 0 where no parameter has a gradient.

        Raises:
            TypeError, ValueError: it is no number and no tensor of one element.
        """
        value: Any = getattr(self, name)
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_meta:
                got = f"shape {list(value.shape)} on {value.device}"
                raise ValueError(f"{name} must be a number or a tensor of one element, got {got}")
            return value
        if value is None:
            return None
        given = number(name, int(value) if isinstance(value, bool) else value)
        return torch.tensor(given, dtype=torch.float32, device=self._buffers.scalars.device)

    def _follow_policy(self) -> None:
        """Makes the current scale one that the policy allows, when the policy has changed."""
        policy, before = loss_scale_policy(self.loss_scale), self._scale_policy
        if policy == before:
            return
        self._scale_policy = policy
        scale = self._buffers.current_scale
        if not isinstance(policy, DynamicLossScale):
            scale.fill_(1.0 if policy is None else policy)
        elif isinstance(before, DynamicLossScale):
            scale.clamp_(policy.min_scale, policy.max_scale)
        else:
            begin, tracker = self._loaded_scale or (policy.init_scale, 0)
            scale.fill_(begin).clamp_(policy.min_scale, policy.max_scale)
            self._buffers.growth_tracker.fill_(tracker)
            self._loaded_scale = None
