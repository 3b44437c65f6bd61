"""Gives an optimizer that exists another class, and makes a learning-rate scheduler's wrapper of its step anew."""

import functools
import weakref
from typing import Any

import torch


def check_own_step(optimizer: torch.optim.Optimizer) -> bool:
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


def swap_class(optimizer: torch.optim.Optimizer, cls: type, has_scheduler: bool) -> None:
    """Makes the optimizer one of `cls`; `has_scheduler` is what `check_own_step` returned."""
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
