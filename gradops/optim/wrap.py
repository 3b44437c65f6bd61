"""`wrap`, which makes an optimizer of ours of torch's own in place, and `unwrap`."""

import functools
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer
from typing_extensions import Unpack

from gradops.distributed.zero import check_owner
from gradops.one_pass.attributes import nearest, shown
from gradops.one_pass.checkpoint import CHECKPOINT_KEYS, saved_scalars, torchs_number
from gradops.one_pass.ema_buffers import EMA_BUFFERS
from gradops.one_pass.groups import check_groups
from gradops.one_pass.known_optimizers import forget
from gradops.one_pass.one_pass import OnePass
from gradops.optim.adagrad import Adagrad
from gradops.optim.adam import Adam, AdamW
from gradops.optim.adamax import Adamax
from gradops.optim.lars import LARS
from gradops.optim.lion import Lion
from gradops.optim.nadam import NAdam
from gradops.optim.own import OwnOptimizer
from gradops.optim.radam import RAdam
from gradops.optim.rmsprop import RMSprop
from gradops.optim.sgd import SGD
from gradops.optim.swap_class import check_own_step, swap_class
from gradops.settings import SETTINGS, Settings, SettingsDict, spelt_out
from gradops.settings_text import with_settings
from gradops.torch_before_2_7 import unname_decay_before_2_7
from gradops.update_rule import UpdateRule

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)

# Torch's classes and ours; a class after its subclasses, as AdamW is one of Adam. Each has an overload of `wrap` too.
_UPGRADES: tuple[tuple[type[torch.optim.Optimizer], type[OnePass]], ...] = (
    (torch.optim.Adagrad, Adagrad),
    (torch.optim.AdamW, AdamW),
    (torch.optim.Adam, Adam),
    (torch.optim.NAdam, NAdam),
    (torch.optim.RAdam, RAdam),
    (torch.optim.Adamax, Adamax),
    (torch.optim.RMSprop, RMSprop),
    (torch.optim.SGD, SGD),
)
# Those whose classes torch does not have.
_OWN: tuple[type[OwnOptimizer], ...] = (LARS, Lion)
TAKEN = ", ".join(sorted(f"torch.optim.{torchs.__name__}" for torchs, _ in _UPGRADES))
_TAKES = f"gradops.wrap takes {TAKEN} and subclasses of them that keep their step"

# Accelerate's is the optimizer that holds one which people meet.
_BEFORE = "wrap that one before prepare() or whatever took it, or use gradops.accelerate.Accelerator"


@overload
def wrap(optimizer: torch.optim.Adagrad, **settings: Unpack[SettingsDict]) -> Adagrad: ...
@overload
def wrap(optimizer: torch.optim.AdamW, **settings: Unpack[SettingsDict]) -> AdamW: ...  # type: ignore[overload-overlap]
@overload
def wrap(optimizer: torch.optim.Adam, **settings: Unpack[SettingsDict]) -> Adam: ...
@overload
def wrap(optimizer: torch.optim.NAdam, **settings: Unpack[SettingsDict]) -> NAdam: ...
@overload
def wrap(optimizer: torch.optim.RAdam, **settings: Unpack[SettingsDict]) -> RAdam: ...
@overload
def wrap(optimizer: torch.optim.Adamax, **settings: Unpack[SettingsDict]) -> Adamax: ...
@overload
def wrap(optimizer: torch.optim.RMSprop, **settings: Unpack[SettingsDict]) -> RMSprop: ...
@overload
def wrap(optimizer: torch.optim.SGD, **settings: Unpack[SettingsDict]) -> SGD: ...
@overload
def wrap(optimizer: OptimizerT, **settings: Unpack[SettingsDict]) -> OptimizerT: ...
@spelt_out
@with_settings
def wrap(optimizer: torch.optim.Optimizer, **settings: Unpack[SettingsDict]) -> torch.optim.Optimizer:
    """Upgrades one of torch's optimizers in place: its step becomes the one pass.

    The object keeps its identity, groups, state, hooks and learning-rate schedulers; its class becomes the matching
    gradops class, so that `isinstance(optimizer, torch.optim.AdamW)` stays true. `unwrap` undoes it.

    Args:
        optimizer: of one of torch's classes that gradops has, too, or of a subclass that keeps torch's `step`.
        **settings: every one of them, with its default.

    Returns:
        The same object, with `backward`, `scale`, `unscale_`, `refresh_` and `stats`, and with every keyword as an
        attribute that each step reads anew.

    Raises:
        TypeError: the optimizer or a keyword is of another kind.
        ValueError: a keyword is out of its range, the optimizer is wrapped already with other options, or the groups
            bring a loss scale from a checkpoint that is NaN.
        RuntimeError: a parameter cannot be stepped, the backend cannot run, or somebody has replaced the optimizer's
            `step`.
    """
    for name in settings:
        if name not in SETTINGS:
            near = nearest(name)
            hint = "" if near is None else f"; did you mean {near!r}?"
            raise TypeError(f"wrap() got an unexpected keyword argument {name!r}{hint}")
    wanted = Settings(**settings)
    wanted.checked()
    check_owner(optimizer)
    _check_kind(optimizer)
    if isinstance(optimizer, OnePass):
        _check_same(optimizer, wanted)
        return optimizer
    cls: type = type(optimizer)
    upgraded = _upgraded_class(cls)
    has_scheduler = check_own_step(optimizer)
    check_groups(optimizer.param_groups, wanted, upgraded.rule)
    saved_scalars(optimizer.param_groups[0])
    swap_class(optimizer, upgraded, has_scheduler)
    optimizer._setup(wanted)  # type: ignore[attr-defined]
    return optimizer


def rule_for(optimizer: Any) -> UpdateRule | None:
    """The update rule of an optimizer that `wrap` takes or has taken; None for any other."""
    if isinstance(optimizer, OnePass):
        return optimizer.rule
    return next((ours.rule for torchs, ours in _UPGRADES if isinstance(optimizer, torchs)), None)


def unwrap(optimizer: OptimizerT) -> OptimizerT:
    """Undoes `wrap`: the object becomes plain torch's again, with its state; also for `gradops.AdamW` and its like.

    Loss scale, counters, masters, compensations, weight averages and what a guard knows are dropped, and recorders
    closed. Moments of half-precision parameters become half precision, as torch needs them.

    Returns:
        The same object; one that is not wrapped is left alone.

    Raises:
        TypeError: torch has no class for it, as for `gradops.Lion`. Nothing has changed then.
    """
    if not isinstance(optimizer, OnePass):
        return optimizer
    if isinstance(optimizer, OwnOptimizer):
        name = type(optimizer).__name__
        raise TypeError(f"gradops.unwrap makes an optimizer torch's own again, and torch has no {name}; keep this one")
    has_scheduler = check_own_step(optimizer)
    for watcher in optimizer.engine.watchers:
        watcher.close()
    for group in optimizer.param_groups:
        for param in group["params"]:
            _make_torchs(optimizer.state, param, group, optimizer.rule)
    for key in CHECKPOINT_KEYS:
        optimizer.param_groups[0].pop(key, None)
    unname_decay_before_2_7(optimizer)
    forget(optimizer)
    for name in (*SETTINGS, "engine"):
        optimizer.__dict__.pop(name, None)
    swap_class(optimizer, _downgraded_class(type(optimizer)), has_scheduler)
    return optimizer


def _make_torchs(states: dict[Tensor, Any], param: Tensor, group: dict[str, Any], rule: UpdateRule) -> None:
    """Makes a parameter's state what torch's optimizer would have."""
    state = states.get(param, {})
    state.pop("master", None)
    state.pop("compensation", None)
    state.pop("ema", None)
    state.pop(EMA_BUFFERS, None)
    if "step" in state and not rule.counts_as_torch and state.pop("step") == 0:
        state.clear()  # torch knows by its moments that there was an update
    for name, value in state.items():
        if isinstance(value, Tensor):
            is_number = name in rule.number_names
            state[name] = torchs_number(value, group) if is_number else value.to(param.dtype)
    if not state:
        states.pop(param, None)


def _check_same(optimizer: OnePass, settings: Settings) -> None:
    for name in SETTINGS:
        now, wanted = getattr(optimizer, name), getattr(settings, name)
        if now != wanted:
            raise ValueError(
                f"this optimizer is wrapped already with {name}={shown(now)}, not {shown(wanted)}; set "
                f"optimizer.{name} instead"
            )


def _raw_step(cls: type) -> Any:
    """The class's `step` without what torch itself wraps around it: profiler labels and hooks."""
    step = cls.step  # type: ignore[attr-defined]
    # By the module that made the wrapper, since functools.wraps copies every attribute to other people's wrappers.
    while step.__globals__ is vars(torch_optimizer) and hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    return step


def _check_kind(optimizer: Any) -> None:
    """Refuses what is no optimizer, or what only holds one."""
    if rule_for(optimizer) is not None:
        return
    got = f"{_TAKES}, got {type(optimizer).__name__}"
    for name in ("optimizer", "opt"):
        if isinstance(getattr(optimizer, name, None), torch.optim.Optimizer):
            made_of = isinstance(optimizer, torch.optim.Optimizer)
            way_on = _BEFORE if made_of else f"pass its .{name}"
            raise TypeError(f"{got}, which holds the optimizer; {way_on}")
    if isinstance(optimizer, type):
        raise TypeError(f"{_TAKES}, got the class {optimizer.__name__}; pass an instance")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"{got}, which is no optimizer")


@functools.cache
def _upgraded_class(cls: type) -> type[OnePass]:
    for base, upgraded in _UPGRADES:
        if not issubclass(cls, base):
            continue
        if cls is base:
            return upgraded
        if _raw_step(cls) is not _raw_step(base):
            raise TypeError(
                f"{cls.__name__} has a step of its own, which gradops.wrap would replace; pass an optimizer "
                f"that keeps torch.optim.{base.__name__}'s step, or {_way_on(cls)}"
            )
        return type(cls.__name__, (upgraded, cls), {"__module__": cls.__module__, "__reduce_ex__": _reduce_upgraded})
    ours = next((ours for ours in _OWN if ours.__name__.lower() == cls.__name__.lower()), None)
    if ours is not None:
        raise TypeError(
            f"{_TAKES}, got {cls.__module__}.{cls.__name__}; build gradops.{ours.__name__} instead, which loads the "
            "state_dict() of timm's"
        )
    raise TypeError(f"{_TAKES}, got {cls.__name__}; train with gradops.AdamW, or {_way_on(cls)}")


def _way_on(cls: type) -> str:
    """How to train with an optimizer that cannot be wrapped."""
    return (
        f"leave {cls.__name__} as it is, with gradops.clip_grad_norm_ for clipping and gradops.GradScaler for float16, "
        "which go with any optimizer"
    )


def _downgraded_class(cls: type) -> type:
    after_ours = cls.__mro__[cls.__mro__.index(OnePass) :]
    return next(base for base in after_ours if base not in OnePass.__mro__)


def _reduce_upgraded(self: OnePass, protocol: int) -> Any:
    """Pickles an instance of a class that was made at run time, and so cannot be found by its name."""
    return _new_upgraded, (_downgraded_class(type(self)),), self.__getstate__()


def _new_upgraded(cls: type) -> OnePass:
    upgraded = _upgraded_class(cls)
    return upgraded.__new__(upgraded)
