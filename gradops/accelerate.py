"""Accelerate: `Accelerator`, whose clipping is done in the optimizer's step and which knows when that was skipped."""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

import gradops
from gradops._frameworks import clips_in_its_step, needs, settings_for
from gradops.one_pass import OnePass

with needs("accelerate"):
    import accelerate
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType

AcceleratorT = TypeVar("AcceleratorT", bound="accelerate.Accelerator")

# These bring optimizers, or a clipping, of their own.
_ELSEWHERE = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)


class Accelerator(accelerate.Accelerator):
    """accelerate.Accelerator for optimizers that take the one pass.

    `prepare` wraps torch.optim.Adam and AdamW; other optimizers stay torch's. `clip_grad_norm_` and `clip_grad_value_`
    of all the parameters of one optimizer are done by its next step. `step_was_skipped` is true whenever an inf or NaN
    made the step skip, with a scaler or without; reading it waits for the device.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _replace_scaler(self)

    def prepare_optimizer(self, optimizer: Any, device_placement: bool | None = None) -> Any:
        """As Accelerate's; wraps the optimizer first."""
        prepared = isinstance(optimizer, AcceleratedOptimizer)
        if prepared or not isinstance(optimizer, torch.optim.Adam) or self.distributed_type in _ELSEWHERE:
            return super().prepare_optimizer(optimizer, device_placement)
        wrapped: Any = optimizer if isinstance(optimizer, OnePass) else gradops.wrap(optimizer)
        placement = self.device_placement if device_placement is None else device_placement
        self._optimizers.append(OnePassOptimizer(wrapped, placement, self.scaler))
        return self._optimizers[-1]

    def clip_grad_norm_(self, parameters: Any, max_norm: float, norm_type: float = 2) -> Tensor:
        """Has the next step clip the gradients to `max_norm`; `inf` asks for the norm alone.

        Returns:
            The norm before clipping: 0-d float32, NaN until the step has measured it.
        """
        parameters = list(_listed(parameters))
        optimizer = self._optimizer_of(parameters)
        if optimizer is None:
            return super().clip_grad_norm_(parameters, max_norm, norm_type)
        return optimizer.clip_norm_at_step(float(max_norm), float(norm_type))

    def clip_grad_value_(self, parameters: Any, clip_value: float) -> None:
        """Has the next step clamp each gradient element to ±clip_value."""
        parameters = list(_listed(parameters))
        optimizer = self._optimizer_of(parameters)
        if optimizer is None:
            super().clip_grad_value_(parameters, clip_value)
        else:
            optimizer.at_step["clip_value"] = float(clip_value)

    def _optimizer_of(self, parameters: list[Tensor]) -> "OnePassOptimizer | None":
        for optimizer in self._optimizers:
            if isinstance(optimizer, OnePassOptimizer) and clips_in_its_step(optimizer.optimizer, parameters):
                return optimizer
        return None


class OnePassOptimizer(AcceleratedOptimizer):
    """What `Accelerator.prepare` makes of a gradops optimizer."""

    def __init__(self, optimizer: OnePass, device_placement: bool, scaler: torch.amp.GradScaler | None) -> None:
        super().__init__(optimizer, device_placement, scaler)
        self.at_step: dict[str, float] = {}
        self.norm: Tensor | None = None
        self.skipped_before: Tensor | None = None

    @property
    def stats(self) -> gradops.StepStats:
        return self.optimizer.stats

    @property
    def step_was_skipped(self) -> bool:
        """Whether an inf or NaN made the last step skip. Waits for the device."""
        return self.skipped_before is not None and bool(self.stats.steps_skipped != self.skipped_before)

    def clip_norm_at_step(self, max_norm: float, norm_type: float) -> Tensor:
        self.at_step["norm_type"] = norm_type
        if max_norm != math.inf:
            self.at_step["max_norm"] = max_norm
        self.norm = torch.full_like(self.stats.grad_norm, math.nan)
        return self.norm

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
        if self.norm is not None:
            self.norm.copy_(self.stats.grad_norm)
        self.at_step, self.norm = {}, None


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
    _replace_scaler(accelerator)
    return accelerator


def _replace_scaler(accelerator: Any) -> None:
    scaler = accelerator.scaler
    if type(scaler) is torch.amp.GradScaler:
        accelerator.scaler = gradops.GradScaler(
            scaler._device,
            scaler._init_scale,
            scaler.get_growth_factor(),
            scaler.get_backoff_factor(),
            scaler.get_growth_interval(),
            scaler.is_enabled(),
        )


def _listed(parameters: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else parameters
