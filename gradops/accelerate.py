"""Accelerate: `Accelerator`, whose clipping is done in the optimizer's step and which knows when that was skipped."""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

import gradops
from gradops._frameworks import (
    clip_now_,
    clips_in_its_step,
    grad_scale_of,
    measured_norm,
    needs,
    one_pass_scaler,
    settings_for,
)
from gradops.one_pass.one_pass import OnePass
from gradops.optim.wrap import rule_for

with needs("accelerate"):
    import accelerate
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType

AcceleratorT = TypeVar("AcceleratorT", bound="accelerate.Accelerator")

# These bring optimizers, or a clipping, of their own.
_ELSEWHERE = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)


class Accelerator(accelerate.Accelerator):
    """accelerate.Accelerator for optimizers that take the one pass.

    `prepare` wraps optimizers that `gradops.wrap` takes; others stay torch's. `clip_grad_norm_` measures at once, and
    like `clip_grad_value_` leaves the clipping to the optimizer's next step: until then, and after it, the gradients
    are what backward made them, unclipped and times the scaler's scale. `step_was_skipped` is true whenever an inf or
    NaN made the step skip, with a scaler or without; reading it waits for the device.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scaler: Any = one_pass_scaler(self.scaler)

    def prepare_optimizer(self, optimizer: Any, device_placement: bool | None = None) -> Any:
        """As Accelerate's; wraps the optimizer first."""
        prepared = isinstance(optimizer, AcceleratedOptimizer)
        if prepared or rule_for(optimizer) is None or self.distributed_type in _ELSEWHERE:
            return super().prepare_optimizer(optimizer, device_placement)
        wrapped: Any = optimizer if isinstance(optimizer, OnePass) else gradops.wrap(optimizer)
        placement = self.device_placement if device_placement is None else device_placement
        self._optimizers.append(OnePassOptimizer(wrapped, placement, self.scaler))
        return self._optimizers[-1]

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """As Accelerate's; a clipping that no step has done yet is done first, and not to the new gradients."""
        for optimizer in self._optimizers:
            if isinstance(optimizer, OnePassOptimizer):
                optimizer.clip_now_()
        super().backward(loss, **kwargs)

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Measures the gradients' norm, and has the next step clip them to `max_norm`; `inf` asks for the norm alone.

        Measuring reads the gradients once, and the step reads them again: they may change between the two, and it must
        clip what it finds. Nothing waits for the device. Clipped here and now, as by Accelerate itself, are gradients
        of other parameters than one optimizer's, those of an optimizer with `clip_mode="agc"`, and those that are
        clipped to 0 or by a `norm_type` that is not positive.

        Returns:
            The norm before clipping, of unscaled gradients: 0-d, on their device; NaN or inf if a gradient holds one.

        Raises:
            ValueError: `max_norm` is negative or NaN.
            RuntimeError: there is a scaler, and no step since the last call: the scale could never go down. A step
                skips by itself where the norm is not finite.
        """
        max_norm, norm_type, parameters = float(max_norm), float(norm_type), list(_listed(parameters))
        if not max_norm >= 0:
            raise ValueError(f"max_norm must not be negative, got {max_norm}")
        settings = {} if max_norm == math.inf else {"max_norm": max_norm, "norm_type": norm_type}
        optimizer = self._optimizer_of(parameters, settings) if norm_type > 0 else None
        if optimizer is None:
            return super().clip_grad_norm_(parameters, max_norm, norm_type)
        return optimizer.clip_norm_at_step(settings, norm_type)

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Has the next step clamp each gradient element to ±clip_value; here and now where `clip_grad_norm_` would."""
        parameters = list(_listed(parameters))
        settings = {"clip_value": float(clip_value)}
        optimizer = self._optimizer_of(parameters, settings)
        if optimizer is None:
            super().clip_grad_value_(parameters, clip_value)
        else:
            optimizer.clip_value_at_step(settings)

    def _optimizer_of(self, parameters: list[Tensor], settings: dict[str, float]) -> "OnePassOptimizer | None":
        for optimizer in self._optimizers:
            if isinstance(optimizer, OnePassOptimizer) and clips_in_its_step(optimizer.optimizer, parameters, settings):
                return optimizer
        return None


class OnePassOptimizer(AcceleratedOptimizer):
    """What `Accelerator.prepare` makes of a gradops optimizer."""

    def __init__(self, optimizer: OnePass, device_placement: bool, scaler: torch.amp.GradScaler | None) -> None:
        super().__init__(optimizer, device_placement, scaler)
        self.at_step: dict[str, float] = {}
        self.measured = False
        self.skipped_before: Tensor | None = None

    @property
    def stats(self) -> gradops.StepStats:
        return self.optimizer.stats

    @property
    def step_was_skipped(self) -> bool:
        """Whether an inf or NaN made the last step skip. Waits for the device."""
        return self.skipped_before is not None and bool(self.stats.steps_skipped != self.skipped_before)

    def clip_norm_at_step(self, settings: dict[str, float], norm_type: float) -> Tensor:
        """The norm as it is now; the next step clips by these settings."""
        scaled = self.scaler is not None and self.scaler.is_enabled()
        if scaled and self.measured:
            raise RuntimeError(
                "clip_grad_norm_ was called already since the last step(), and without a step the scaler cannot lower "
                "its scale. Call optimizer.step() whatever the norm is: it skips where the norm is not finite"
            )
        if "max_norm" in self.at_step:
            self.clip_now_()
        clip_value = self.at_step.get("clip_value", self.optimizer.clip_value)
        norm = measured_norm(self.optimizer, grad_scale_of(self.optimizer, self.scaler), clip_value, norm_type)
        self.at_step |= settings
        self.measured = True
        return norm

    def clip_value_at_step(self, settings: dict[str, float]) -> None:
        """The next step clamps by these settings; what it should do before is done now."""
        self.clip_now_()
        self.at_step = settings

    def clip_now_(self) -> None:
        """Clips the gradients themselves as the next step should have."""
        if self.at_step:
            clip_now_(self.optimizer, grad_scale_of(self.optimizer, self.scaler), **self.at_step)
            self.at_step = {}

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """As Accelerate's; nothing is left to clip."""
        super().zero_grad(set_to_none)
        if self.gradient_state.sync_gradients:
            self.at_step = {}

    def step(self, closure: Any = None) -> None:
        """Accelerate's, without the detour by which it learns whether a scaler skipped."""
        if not self.gradient_state.sync_gradients:
            return
        self.skipped_before = self.stats.steps_skipped.clone()
        with settings_for(self.optimizer, self.at_step):
            if self.scaler is None:
                self.optimizer.step(closure)
            else:
                self.scaler.step(self.optimizer, closure)
                self.scaler.update()
        self.at_step, self.measured = {}, False


def upgrade(accelerator: AcceleratorT) -> AcceleratorT:
    """Makes an accelerate.Accelerator a `gradops.accelerate.Accelerator`, in place, before it prepares anything.

    Raises:
        TypeError: it is of a subclass, whose methods this one's would hide.
        RuntimeError: it has prepared optimizers already.
    """
    if isinstance(accelerator, Accelerator):
        return accelerator
    if type(accelerator) is not accelerate.Accelerator:
        raise TypeError(f"upgrade takes an accelerate.Accelerator, got {type(accelerator).__name__}")
    if accelerator._optimizers:
        raise RuntimeError("this accelerator has prepared optimizers already; upgrade it before")
    accelerator.__class__ = Accelerator
    accelerator.scaler = one_pass_scaler(accelerator.scaler)
    return accelerator


def _listed(parameters: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else parameters
