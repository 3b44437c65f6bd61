"""The keywords that gradops adds to an optimizer: what they may be, and what the native code makes of them."""

import math
from dataclasses import dataclass
from typing import Any

from gradops import _C
from gradops.loss_scale import DynamicLossScale
from gradops.relative_step import RelativeStepCap

LossScale = None | float | str | DynamicLossScale


@dataclass(frozen=True)
class Settings:
    """The keywords of `wrap`, `Adam` and `AdamW` besides torch's.

    Args:
        max_norm: the gradients' norm is clipped to it; positive, None for no clipping.
        norm_type: p of that norm; positive, may be inf.
        clip_value: each unscaled gradient element is clamped to ±clip_value; positive, None for no clamping.
        max_relative_step: a `RelativeStepCap`, a float for a cap without warm-up, None for none.
        loss_scale: a `DynamicLossScale`, "dynamic" for the default one, a float for a fixed scale, None for none.
    """

    max_norm: float | None = None
    norm_type: float = 2.0
    clip_value: float | None = None
    max_relative_step: float | RelativeStepCap | None = None
    loss_scale: LossScale = None

    def native(self) -> _C.StepSettings:
        """Checks every keyword and returns what the native step takes.

        Raises:
            ValueError: a value is out of its range.
            TypeError: a value is of the wrong kind.
        """
        cap = relative_step_cap(self.max_relative_step)
        policy = loss_scale_policy(self.loss_scale)
        return _C.StepSettings(
            max_norm=_positive("max_norm", self.max_norm),
            norm_type=_positive("norm_type", self.norm_type),
            clip_value=_positive("clip_value", self.clip_value),
            relative_step=None if cap is None else _C.RelativeStepRule(cap.cap, cap.floor, cap.warmup_steps),
            loss_scale_rule=_loss_scale_rule(policy),
        )


SETTINGS = tuple(Settings.__dataclass_fields__)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def _positive(name: str, value: float | None) -> float:
    """The value as a float; None, which is allowed for all but norm_type, as the limit that never binds."""
    if value is None and name != "norm_type":
        return math.inf
    number = _number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return number


def relative_step_cap(value: float | RelativeStepCap | None) -> RelativeStepCap | None:
    """The policy that `max_relative_step` stands for."""
    if value is None or isinstance(value, RelativeStepCap):
        return value
    number = _number("max_relative_step", value)
    if not 0 < number < math.inf:
        raise ValueError(f"max_relative_step must be positive and finite, got {value}")
    return RelativeStepCap(number)


def loss_scale_policy(value: LossScale) -> None | float | DynamicLossScale:
    """The policy that `loss_scale` stands for."""
    if value is None or isinstance(value, DynamicLossScale):
        return value
    if isinstance(value, str):
        if value != "dynamic":
            raise ValueError(f'loss_scale must be "dynamic", a number or a DynamicLossScale, got {value!r}')
        return DynamicLossScale()
    number = _number("loss_scale", value)
    if not 0 < number < math.inf:
        raise ValueError(f"loss_scale must be positive and finite, got {value}")
    return number


def _loss_scale_rule(policy: None | float | DynamicLossScale) -> _C.LossScaleRule | None:
    if not isinstance(policy, DynamicLossScale):
        return None
    return _C.LossScaleRule(
        growth_factor=policy.growth_factor,
        backoff_factor=policy.backoff_factor,
        growth_interval=policy.growth_interval,
        min_scale=policy.min_scale,
        max_scale=policy.max_scale,
    )
