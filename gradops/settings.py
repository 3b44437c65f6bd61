"""The keywords that gradops adds to an optimizer: what they may be."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal, TypedDict, TypeVar, get_args

import torch

from gradops.numbers import flag, not_negative, off, positive, positive_and_finite
from gradops.policies.ema import WeightEma
from gradops.policies.loss_scale import DynamicLossScale
from gradops.policies.protect import Protect, protect_setting
from gradops.policies.relative_step import RelativeStepCap
from gradops.policies.spike_guard import SpikeGuard
from gradops.update_rule import UpdateRule

# In the order in which they are tried.
Backend = Literal["native", "triton", "torch"]
Rounding = Literal["nearest", "kahan"]
ClipMode = Literal["norm", "agc"]
LossScale = None | float | Literal["dynamic"] | DynamicLossScale

BACKENDS: tuple[Backend, ...] = get_args(Backend)
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
CLIP_MODES: tuple[ClipMode, ...] = get_args(ClipMode)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The keywords of `wrap` and of the optimizers besides torch's; `gradops.settings_text` says what they mean."""

    max_norm: float | None = None
    norm_type: float = 2.0
    clip_value: float | None = None
    max_relative_step: float | RelativeStepCap | None = None
    loss_scale: LossScale = None
    guard: SpikeGuard | None = None
    backend: Backend | None = None
    master_weights: bool = False
    moments_dtype: torch.dtype = torch.float32
    rounding: Rounding = "nearest"
    track_updates: bool = False
    l1: float = 0.0
    clip_mode: ClipMode = "norm"
    protect: Protect = None
    ema: WeightEma | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "protect", protect_setting(self.protect))

    def checked(self, rule: UpdateRule | None = None) -> "Settings":
        """The same with every number a float and every policy an object.

        Args:
            rule: also whether they go with this update rule.

        Raises:
            ValueError: a value is out of its range, or does not go with another or with the rule.
            TypeError: a value is of the wrong kind.
        """
        checked = Settings(**{name: check_setting(name, getattr(self, name)) for name in SETTINGS})
        if self.clip_mode == "agc" and self.max_norm is None:
            raise ValueError("clip_mode='agc' needs max_norm: what a gradient may be of its weights, such as 0.01")
        if self.master_weights and self.rounding != "nearest":
            raise ValueError(f"rounding={self.rounding!r} takes the place of master_weights; set one of them")
        if rule is not None and rule.needs_norms:
            checked._check_norms(f"{rule.title} scales each tensor's step by the L2 norm of its clipped gradient")
        elif rule is not None and not rule.scale_free and self.max_relative_step is not None:
            bounds = f"max_relative_step bounds a step of {rule.title} by the L2 norm of each tensor's clipped gradient"
            checked._check_norms(bounds)
        return checked

    def measures_params(self, rule: UpdateRule) -> bool:
        """Whether a step by the rule compares with the sizes of the parameters before it."""
        return self.max_relative_step is not None or rule.needs_norms

    def _check_norms(self, needs: str) -> None:
        """Refuses what hides the norm of each clipped gradient before the update, which somebody `needs`."""
        if self.norm_type != 2.0:
            raise ValueError(f"{needs}: norm_type must be 2, got {self.norm_type}")
        if self.clip_mode == "agc":
            raise ValueError(f"{needs}, and clip_mode='agc' clips it unit by unit during the update; set one of them")

    @property
    def of_state(self) -> tuple[Any, ...]:
        """The settings that an optimizer's state depends on."""
        averaged = None if self.ema is None else (self.ema.buffers,)
        return self.master_weights, self.moments_dtype, self.rounding, averaged


SETTINGS = tuple(Settings.__dataclass_fields__)
# What an optimizer's attributes say, in the order of SETTINGS.
values_of = attrgetter(*SETTINGS)


def settings_of(optimizer: Any) -> Settings:
    """What an optimizer's attributes say; unchecked."""
    return Settings(**dict(zip(SETTINGS, values_of(optimizer), strict=True)))


class SettingsDict(TypedDict, total=False):
    """The settings as the keywords of a function: `**settings: Unpack[SettingsDict]`."""

    max_norm: float | None
    norm_type: float
    clip_value: float | None
    max_relative_step: float | RelativeStepCap | None
    loss_scale: LossScale
    guard: SpikeGuard | None
    backend: Backend | None
    master_weights: bool
    moments_dtype: torch.dtype
    rounding: Rounding
    track_updates: bool
    l1: float
    clip_mode: ClipMode
    protect: Protect
    ema: WeightEma | None


class SettingsAttributes:
    """The settings as the attributes of an optimizer."""

    max_norm: float | None
    norm_type: float
    clip_value: float | None
    max_relative_step: float | RelativeStepCap | None
    loss_scale: LossScale
    guard: SpikeGuard | None
    backend: Backend | None
    master_weights: bool
    moments_dtype: torch.dtype
    rounding: Rounding
    track_updates: bool
    l1: float
    clip_mode: ClipMode
    protect: Protect
    ema: WeightEma | None


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


def with_l1(groups: list[dict[str, Any]], l1: float) -> list[dict[str, Any]]:
    """The groups, each with an "l1": its own, or that of the settings, which has been checked.

    Raises:
        ValueError: a group's own is out of range.
    """
    return [{**group, "l1": not_negative("l1", group["l1"]) if "l1" in group else l1} for group in groups]


def _one_of(*known: Any) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}{off(name)}")
        return value

    return check


def _moments_dtype(name: str, value: Any) -> torch.dtype:
    if value not in (torch.float32, torch.bfloat16):
        raise ValueError(f"{name} must be torch.float32 or torch.bfloat16, got {value!r}")
    return value


def _or_none(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _kind_or_none(kind: type) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__} or None, got {value!r}")
        return value

    return check


def relative_step_cap(value: float | RelativeStepCap | None) -> RelativeStepCap | None:
    """The policy that `max_relative_step` stands for."""
    if value is None or isinstance(value, RelativeStepCap):
        return value
    return RelativeStepCap(positive_and_finite("max_relative_step", value))


def _no_loss_scale(value: Any) -> str:
    return f'loss_scale must be "dynamic", a number or a DynamicLossScale, got {value!r}{off("loss_scale")}'


def loss_scale_policy(value: LossScale) -> None | float | DynamicLossScale:
    """The policy that `loss_scale` stands for."""
    if value is None or isinstance(value, DynamicLossScale):
        return value
    if isinstance(value, str):
        if value != "dynamic":
            raise ValueError(_no_loss_scale(value))
        return DynamicLossScale()
    if isinstance(value, bool):
        raise TypeError(_no_loss_scale(value))
    return positive_and_finite("loss_scale", value)


# What each setting may be by itself; gives it with every number a float and every policy an object.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "max_norm": _or_none(positive),
    "norm_type": positive,
    "clip_value": _or_none(positive),
    "max_relative_step": lambda _, value: relative_step_cap(value),
    "loss_scale": lambda _, value: loss_scale_policy(value),
    "guard": _kind_or_none(SpikeGuard),
    "backend": _one_of(None, *BACKENDS),
    "master_weights": flag,
    "moments_dtype": _moments_dtype,
    "rounding": _one_of(*ROUNDINGS),
    "track_updates": flag,
    "l1": not_negative,
    "clip_mode": _one_of(*CLIP_MODES),
    "protect": lambda _, value: protect_setting(value),
    "ema": _kind_or_none(WeightEma),
}


def check_setting(name: str, value: Any) -> Any:
    """The value as a step takes it.

    Args:
        name: of the setting.
        value: what was given for it.

    Raises:
        ValueError: it is out of its range.
        TypeError: it is of the wrong kind.
    """
    return _CHECKS[name](name, value)
