"""What the Triton kernels read, as arrays on the device: written where something moved, read at every step."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import Settings, loss_scale_policy, relative_step_cap
from gradops.update_rule import UpdateRule, number_of


class DeviceTable:
    """The device's copy of numbers that change rarely.

    A change is written to new memory by a copy that nobody waits for: kernels that are under way, and graphs, read the
    old. The staging memory is pinned, and torch keeps it until the copy is done.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._values: Sequence[Any] = ()
        self._tensor: Tensor | None = None
        self._captured: list[Tensor] = []

    def update(self, values: Sequence[Any], device: torch.device) -> Tensor:
        """The numbers on the device; a list that has been given once must not change any more.

        Raises:
            RuntimeError: they changed while a graph is captured, which would copy from memory that is gone at replay.
        """
        known = values is self._values or values == self._values
        if self._tensor is None or self._tensor.device != device or not known:
            if is_capturing(device):
                raise RuntimeError(
                    "gradops: this would copy to the GPU where tensors or param_groups now are, which a graph cannot "
                    "capture; take a step like it before the capture"
                )
            staging = torch.tensor(values, dtype=self._dtype, device="cpu", pin_memory=device.type == "cuda")
            self._tensor = staging.to(device, non_blocking=True)
            self._values = values
        return self._tensor

    def captured(self) -> None:
        """A graph holds the address from now on."""
        if self._tensor is not None and (not self._captured or self._captured[-1] is not self._tensor):
            self._captured.append(self._tensor)


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def group_words(group: dict[str, Any], lr: float | Tensor, rule: UpdateRule) -> list[float]:
    """A group's hyper-parameters; of a tensor lr only its dtype."""
    return [
        0.0 if isinstance(lr, Tensor) else float(lr),
        float(isinstance(lr, Tensor) and lr.dtype == torch.float64),
        number_of(group, "weight_decay"),
        float(rule.decouples(group)),
        float(group["maximize"]),
        number_of(group, "l1"),
        *rule.hyper_of(group),
    ]


def setting_words(settings: Settings) -> list[float]:
    """The settings of a step, and inf where nothing is limited."""
    cap = relative_step_cap(settings.max_relative_step)
    policy = loss_scale_policy(settings.loss_scale)
    agc = settings.clip_mode == "agc"
    limits = [None if agc else settings.max_norm, settings.norm_type, settings.clip_value]
    numbers = [math.inf if value is None else float(value) for value in limits]
    numbers += [math.inf, 0.0, 0.0] if cap is None else [cap.cap, cap.floor, float(cap.warmup_steps)]
    if isinstance(policy, DynamicLossScale):
        numbers += [policy.growth_factor, policy.backoff_factor, float(policy.growth_interval)]
        numbers += [policy.min_scale, policy.max_scale]
    else:
        numbers += [1.0] * 5
    guard = settings.guard
    if guard is None:
        numbers += [math.inf, *[1.0] * 7]
    else:
        numbers += [guard.ratio, guard.z_score, float(guard.skips), guard.lr_cut, guard.lr_growth, guard.min_lr_factor]
        numbers += [float(guard.history), float(guard.warmup_steps)]
    numbers.append(float(settings.max_norm) if agc and settings.max_norm is not None else math.inf)
    return [*numbers, *([0.0] * 7 if settings.ema is None else settings.ema.numbers)]
