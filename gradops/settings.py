"""The keywords that gradops adds to an optimizer: what they may be."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

import torch

from gradops.loss_scale import DynamicLossScale
from gradops.protect import Protect, protect_setting
from gradops.relative_step import RelativeStepCap
from gradops.spike_guard import SpikeGuard

# In the order in which they are tried.
BACKENDS = ("native", "triton", "torch")

ROUNDINGS = ("nearest", "kahan")
CLIP_MODES = ("norm", "agc")

LossScale = None | float | str | DynamicLossScale

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """The keywords of `wrap`, `Adam` and `AdamW` besides torch's.

    Args:
        max_norm: the gradients' norm is clipped to it; positive, None for no clipping.
        norm_type: p of that norm; positive, may be inf.
        clip_value: each unscaled gradient element is clamped to ±clip_value; positive, None for no clamping.
        max_relative_step: a `RelativeStepCap`, a float for a cap without warm-up, None for none.
        loss_scale: a `DynamicLossScale`, "dynamic" for the default one, a float for a fixed scale, None for none.
        guard: a `SpikeGuard`, None for none.
        backend: "native", "triton" or "torch" forces what runs the step; None for the first of them that can.
        master_weights: whether parameters in half precision have a float32 master that is updated in their place.
        moments_dtype: in which moments are stored, torch.float32 or torch.bfloat16.
        rounding: how parameters in half precision are rounded that have no master: "nearest", or "kahan", which keeps
            what rounding took off each and adds it to the next update.
        l1: weight of the L1 penalty, whose subgradient is added to the clipped gradients; not negative. A group's own
            "l1" wins over it.
        clip_mode: "norm" clips the norm of all gradients together; "agc" (adaptive gradient clipping) the norm of each
            unit, to max_norm times the norm of its weights. A group's own "agc": False spares its parameters.
        track_updates: whether `stats.update_ratio` and `stats.param_rms` are gathered while the update writes.
        protect: a module, or several, whose buffers go back where a step is skipped.
    """

    max_norm: float | None = None
    norm_type: float = 2.0
    clip_value: float | None = None
    max_relative_step: float | RelativeStepCap | None = None
    loss_scale: LossScale = None
    guard: SpikeGuard | None = None
    backend: str | None = None
    master_weights: bool = False
    moments_dtype: torch.dtype = torch.float32
    rounding: str = "nearest"
    track_updates: bool = False
    l1: float = 0.0
    clip_mode: str = "norm"
    protect: Protect = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "protect", protect_setting(self.protect))

    def checked(self) -> "Settings":
        """The same with every number a float and every policy an object.

        Raises:
            ValueError: a value is out of its range.
            TypeError: a value is of the wrong kind.
        """
        if self.backend not in (None, *BACKENDS):
            raise ValueError(f"backend must be None or one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.clip_mode not in CLIP_MODES:
            raise ValueError(f"clip_mode must be one of {', '.join(CLIP_MODES)}, got {self.clip_mode!r}")
        if self.clip_mode == "agc" and self.max_norm is None:
            raise ValueError("clip_mode='agc' needs max_norm: what a gradient may be of its weights, such as 0.01")
        return Settings(
            max_norm=None if self.max_norm is None else _positive("max_norm", self.max_norm),
            norm_type=_positive("norm_type", self.norm_type),
            clip_value=None if self.clip_value is None else _positive("clip_value", self.clip_value),
            max_relative_step=relative_step_cap(self.max_relative_step),
            loss_scale=loss_scale_policy(self.loss_scale),
            guard=_spike_guard(self.guard),
            backend=self.backend,
            master_weights=_flag("master_weights", self.master_weights),
            moments_dtype=_moments_dtype(self.moments_dtype),
            rounding=_rounding(self.rounding, self.master_weights),
            track_updates=_flag("track_updates", self.track_updates),
            l1=_penalty("l1", self.l1),
            clip_mode=self.clip_mode,
            protect=self.protect,
        )

    @property
    def of_state(self) -> tuple[Any, ...]:
        """What an optimizer's state hangs on."""
        return self.master_weights, self.moments_dtype, self.rounding


SETTINGS = tuple(Settings.__dataclass_fields__)


class SettingsDict(TypedDict, total=False):
    """The settings as the keywords of a function: `**settings: Unpack[SettingsDict]`."""

    max_norm: float | None
    norm_type: float
    clip_value: float | None
    max_relative_step: float | RelativeStepCap | None
    loss_scale: LossScale
    guard: SpikeGuard | None
    backend: str | None
    master_weights: bool
    moments_dtype: torch.dtype
    rounding: str
    track_updates: bool
    l1: float
    clip_mode: str
    protect: Protect


class SettingsAttributes:
    """The settings as the attributes of an optimizer."""

    max_norm: float | None
    norm_type: float
    clip_value: float | None
    max_relative_step: float | RelativeStepCap | None
    loss_scale: LossScale
    guard: SpikeGuard | None
    backend: str | None
    master_weights: bool
    moments_dtype: torch.dtype
    rounding: str
    track_updates: bool
    l1: float
    clip_mode: str
    protect: Protect


def spelt_out(function: FunctionT, like: Callable[..., Any] | None = None) -> FunctionT:
    """Has `help` and `inspect.signature` list every setting where the function says `**settings`.

    Args:
        function: one whose last argument is `**settings`.
        like: whose signature stands before the settings; the function's own if None.
    """
    own = inspect.signature(function if like is None else like)
    before = [parameter for parameter in own.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    settings = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Settings)
    ]
    function.__signature__ = own.replace(parameters=[*before, *settings])  # type: ignore[attr-defined]
    return function


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def _moments_dtype(value: Any) -> torch.dtype:
    if value not in (torch.float32, torch.bfloat16):
        raise ValueError(f"moments_dtype must be torch.float32 or torch.bfloat16, got {value!r}")
    return value


def _rounding(value: Any, master_weights: bool) -> str:
    if value not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {value!r}")
    if master_weights and value != "nearest":
        raise ValueError(f"rounding={value!r} takes the place of master_weights; set one of them")
    return value


def _penalty(name: str, value: float) -> float:
    number = _number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}")
    return number


def with_l1(groups: list[dict[str, Any]], l1: float) -> list[dict[str, Any]]:
    """The groups, each with an "l1": its own, or that of the settings.

    Raises:
        ValueError: a group's own is out of range.
    """
    return [{**group, "l1": _penalty("l1", group.get("l1", l1))} for group in groups]


def _positive(name: str, value: float) -> float:
    number = _number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be positive, got {value}")
    return number


def _spike_guard(value: Any) -> SpikeGuard | None:
    if value is None or isinstance(value, SpikeGuard):
        return value
    raise TypeError(f"guard must be a SpikeGuard or None, got {value!r}")


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
