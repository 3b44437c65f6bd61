"""`Adam`, `AdamW`, and `wrap`, which makes them of torch's own in place."""

import functools
import weakref
from typing import Any, TypeVar

import torch
from torch.optim import optimizer as torch_optimizer
from typing_extensions import Unpack

from gradops.attributes import shown
from gradops.checkpoint import CHECKPOINT_KEYS, torchs_step
from gradops.distributed.zero import check_owner
from gradops.known_optimizers import forget
from gradops.one_pass import OnePass
from gradops.param_groups import check_groups
from gradops.settings import SETTINGS, Settings, SettingsDict, spelt_out

OptimizerT = TypeVar("OptimizerT", bound=torch.optim.Optimizer)

_ARGUMENTS = """
    Args:
        params: parameters, named parameters or groups: float32, bfloat16 and float16 on one device, of any layout.
        *args, **kwargs: torch's arguments.
        max_norm: the gradients' norm is clipped to it, as by `torch.nn.utils.clip_grad_norm_`; positive.
        norm_type: p of that norm; positive, may be inf.
        clip_value: each unscaled gradient element is clamped to ±clip_value before the norm is taken; positive.
        max_relative_step: caps each tensor's learning rate by the size of its weights; a float or a `RelativeStepCap`.
        loss_scale: "dynamic", a `DynamicLossScale`, a fixed scale, or None for no scaling.
        guard: a `SpikeGuard` against single steps whose norm is far out of its history; None for none.
        backend: "native", "triton" or "torch" forces what runs the step; None for the first of them that can.
        master_weights: whether bfloat16 and float16 parameters have a float32 master in their state, which the step
            updates and writes, rounded, to the parameter. float32 parameters are left as they are.
        moments_dtype: torch.bfloat16 stores the moments in half the memory, rounded to nearest.
        rounding: "kahan" keeps what rounding takes off each bfloat16 and float16 parameter, in its own dtype in the
            state, and adds it to the next update: an alternative to `master_weights`. "nearest" loses it.
        l1: weight of an L1 penalty beside the weight decay: `l1 * sign(param)` is added to the clipped gradients.
            A group's own "l1" wins over it; `gradops.no_decay_groups` makes groups that spare norms and biases.
        clip_mode: "norm", or "agc" for adaptive gradient clipping (Brock et al. 2021): the gradient of each unit, a
            filter or a row, is clipped to max_norm (0.01, say) times the norm of its weights, which counts as at least
            1e-3. A group with "agc": False is spared, as the paper spares the last layer.
        track_updates: whether each step also measures how far it moved every parameter: `stats.update_ratio` and
            `stats.param_rms`, gathered while the update writes. Like every setting it may be set at run time.
        protect: the model, a module or an iterable of them. Where a step is skipped, for an inf or NaN or by the guard,
            its buffers go back to what they were after the last applied step: BatchNorm's running statistics, which the
            forward of a NaN batch has made NaN for ever. All of its buffers are kept, of every dtype, by their names,
            with what all micro-batches since the last step did to them; it takes twice their memory. Optimizers that
            protect the same modules share what is kept. Buffers on the CPU beside parameters on a GPU are left alone.
            See `refresh_` for buffers that you edit yourself.

    Raises:
        ValueError: a keyword is out of its range, a parameter stands twice in the groups, or `differentiable` is set.
        RuntimeError: a parameter cannot be stepped, or the backend cannot run; the message names it and says why.
"""


class AdamWKeywords(SettingsDict, total=False):
    """torch.optim.AdamW's keywords and the settings."""

    lr: float | torch.Tensor
    betas: tuple[float | torch.Tensor, float | torch.Tensor]
    eps: float
    weight_decay: float
    amsgrad: bool
    foreach: bool | None
    maximize: bool
    capturable: bool
    differentiable: bool
    fused: bool | None


class AdamKeywords(AdamWKeywords, total=False):
    """torch.optim.Adam's keywords and the settings."""

    decoupled_weight_decay: bool


class Adam(OnePass, torch.optim.Adam):
    __doc__ = f"""torch.optim.Adam whose step also unscales, checks, measures, clips and moves the loss scale.

    Moments are of `moments_dtype` whatever the parameter's dtype. A step's meaning is written down in
    `gradops.reference`.
    {_ARGUMENTS}"""

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[AdamKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.Adam.__init__)


class AdamW(OnePass, torch.optim.AdamW):
    __doc__ = f"""torch.optim.AdamW, as `gradops.Adam` is torch.optim.Adam.
    {_ARGUMENTS}"""

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[AdamWKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.AdamW.__init__)


@spelt_out
def wrap(optimizer: OptimizerT, **settings: Unpack[SettingsDict]) -> OptimizerT:
    """Upgrades a torch.optim.Adam or AdamW in place: its step becomes the one pass.

    The object keeps its identity, groups, state, hooks and learning-rate schedulers; its class becomes the matching
    gradops class, so that `isinstance(optimizer, torch.optim.AdamW)` stays true. `unwrap` undoes it.

    Args:
        optimizer: a torch.optim.Adam or AdamW, or an instance of a subclass that keeps torch's `step`.
        **settings: max_norm, norm_type, clip_value, max_relative_step, loss_scale, guard, backend, master_weights,
            moments_dtype, rounding, track_updates, l1, clip_mode, protect: as for `gradops.AdamW`.

    Returns:
        The same object.

    Raises:
        TypeError: the optimizer is of another kind.
        ValueError: a keyword is out of its range, or the optimizer is wrapped already with other options.
        RuntimeError: a parameter cannot be stepped, the backend cannot run, or somebody has replaced the optimizer's
            `step`.
    """
    for name in settings:
        if name not in SETTINGS:
            raise TypeError(f"wrap() got an unexpected keyword argument {name!r}")
    wanted = Settings(**settings)
    wanted.checked()
    check_owner(optimizer)
    if isinstance(optimizer, OnePass):
        _check_same(optimizer, wanted)
        return optimizer
    cls: type = type(optimizer)
    upgraded = _upgraded_class(cls)
    has_scheduler = _check_own_step(optimizer)
    check_groups(optimizer.param_groups, wanted)
    _swap_class(optimizer, upgraded, has_scheduler)
    optimizer._setup(wanted)  # type: ignore[attr-defined]
    return optimizer


def unwrap(optimizer: OptimizerT) -> OptimizerT:
    """Undoes `wrap`: the object becomes plain torch's again, with its state; also for `gradops.Adam` and `AdamW`.

    Loss scale, counters, masters, compensations and what a guard knows are dropped, and recorders closed. Moments of
    half-precision parameters become half precision, as torch needs them.

    Returns:
        The same object; one that is not wrapped is left alone.
    """
    if not isinstance(optimizer, OnePass):
        return optimizer
    has_scheduler = _check_own_step(optimizer)
    for watcher in optimizer._watchers:
        watcher.close()
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param, {})
            state.pop("master", None)
            state.pop("compensation", None)
            for name, value in state.items():
                state[name] = torchs_step(value, group) if name == "step" else value.to(param.dtype)
    for key in CHECKPOINT_KEYS:
        optimizer.param_groups[0].pop(key, None)
    forget(optimizer)
    for name in (*SETTINGS, *OnePass.RUNTIME):
        optimizer.__dict__.pop(name, None)
    _swap_class(optimizer, _downgraded_class(type(optimizer)), has_scheduler)
    return optimizer


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


@functools.cache
def _upgraded_class(cls: type) -> type[OnePass]:
    # AdamW first: it is a subclass of Adam.
    for base, upgraded in ((torch.optim.AdamW, AdamW), (torch.optim.Adam, Adam)):
        if not issubclass(cls, base):
            continue
        if cls is base:
            return upgraded
        if _raw_step(cls) is not _raw_step(torch.optim.Adam):
            raise TypeError(
                f"{cls.__name__} has a step of its own, which gradops.wrap would replace; pass an optimizer "
                f"that keeps torch.optim.{base.__name__}'s step"
            )
        return type(cls.__name__, (upgraded, cls), {"__module__": cls.__module__, "__reduce_ex__": _reduce_upgraded})
    raise TypeError(
        "gradops.wrap takes torch.optim.Adam, torch.optim.AdamW and subclasses of them that keep their step, "
        f"got {cls.__name__}; leave it to torch, with gradops.clip_grad_norm_ for clipping and gradops.GradScaler for "
        "float16"
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


def _check_own_step(optimizer: torch.optim.Optimizer) -> bool:
    """Refuses an optimizer whose `step` somebody replaced; returns whether a learning-rate scheduler has wrapped it."""
    own = optimizer.__dict__.get("step")
    if own is None:
        return False
    if hasattr(own, "_wrapped_by_lr_sched"):
        return True
    raise RuntimeError(
        "somebody has replaced this optimizer's step() (Accelerate's prepare() does); call gradops.wrap first, then "
        "hand the optimizer on"
    )


def _swap_class(optimizer: torch.optim.Optimizer, cls: type, has_scheduler: bool) -> None:
    optimizer.__dict__.pop("step", None)
    optimizer.__class__ = cls
    optimizer._patch_step_function()
    if has_scheduler:
        _count_steps_for_scheduler(optimizer)


def _count_steps_for_scheduler(optimizer: torch.optim.Optimizer) -> None:
    """What a learning-rate scheduler does to an optimizer's step when it is made, done to the new step.

    Its own wrapper calls the step of the old class. It notes in `_opt_called` that a step was taken.
    """
    reference = weakref.ref(optimizer)
    step = type(optimizer).step

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        target = reference()
        target._opt_called = True  # type: ignore[union-attr]
        return step.__get__(target, type(target))(*args, **kwargs)

    counted._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = counted  # type: ignore[method-assign]
