"""torch's profiler label and step hooks around a step, where somebody looks."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import optimizer as torch_optimizer

StepT = TypeVar("StepT", bound=Callable[..., Any])


def hooked_step(step: StepT) -> StepT:
    """What torch does to the step of every optimizer, its label for profilers and the step hooks, where it is needed.

    torch opens the label's range whether or not anybody looks, which takes longer than a small network's step.
    torch.compile leaves the step alone: it is native code already, and tracing its Python would break there many times.
    """
    watched = torch.optim.Optimizer.profile_hook_step(step)
    hooks_of_all = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)

    @functools.wraps(step)
    def hooked(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return untraced(self, *args, **kwargs)
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or any(hooks_of_all)
        if hooks or torch.autograd._profiler_enabled():
            return watched(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    untraced = torch._disable_dynamo(hooked)
    hooked.hooked = True  # type: ignore[attr-defined]  # torch's sign that there is nothing left to do
    return hooked  # type: ignore[return-value]
