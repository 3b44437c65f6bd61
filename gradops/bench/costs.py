"""What a step costs, counted while it runs once: bytes, operator calls and waits of the host.

Everything that goes through torch's dispatcher is seen; docs/costs.md derives what does not.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

# They move no element: memory is taken, or a profiler's range opened.
_FREE = ("aten::empty", "aten::new_empty", "profiler::", "aten::lift_fresh")
# They write without having read.
_BLIND = ("aten::zero_", "aten::fill_", "aten::copy_", "aten::_foreach_zero_", "aten::_foreach_copy_")
# Fused optimizers, whose schema promises more writes than they do: gradients only with a scale to divide them by.
_FUSED = "aten::_fused_"
# Ranges of the library that stand for a launch each; a CPU's are no operators.
NATIVE_LAUNCHES = ("gradops.grad_stats", "gradops.param_stats", "gradops.update")


def nothing_hidden(_: int) -> int:
    """For recipes whose every byte moves in an operator call."""
    return 0


def one_pass_bytes(
    element: int,
    *,
    moments: int = 2,
    master: bool = False,
    moment: int = 4,
    compensation: bool = False,
    ema: bool = False,
) -> int:
    """What our step moves a parameter, from the bytes of an element of parameter and gradient.

    The gradient is read twice, parameter and moments once; the last three are written. With a float32 master that is
    read and written, and the parameter only written. A compensation is as large as the parameter, an EMA float32, and
    both are read and written.

    Args:
        element: bytes of an element of parameter and gradient.
        moments: that each element's update has.
        master, compensation, ema: whether there is one.
        moment: bytes of an element of a moment.
    """
    updated = 4 if master else element * (1 + compensation)
    return 2 * element + 2 * (updated + moments * moment + 4 * ema) + (element if master else 0)


@dataclass(frozen=True)
class Costs:
    """One step's costs.

    Attributes:
        bytes: read and written by operators; each tensor of a call once each way.
        calls: operators that touch data and native launches, a launch each or more on a GPU; there, kernels.
        waits: values that came from the gradients and that the host read: on a GPU, a synchronisation each.
    """

    bytes: int
    calls: int
    waits: int


class CostMode(TorchDispatchMode):
    """Counts operators under it.

    Args:
        derived: tensors whose values only the device knows; so do those that are computed from them.
    """

    def __init__(self, derived: Iterable[Tensor]) -> None:
        super().__init__()
        self.costs = Costs(0, 0, 0)
        # By identity, since == of tensors is elementwise; weakly, since memory is used again.
        self._derived: Any = WeakIdKeyDictionary()
        self._mark(derived)

    def _mark(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                self._derived[value] = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        derived = any(value in self._derived for value in inputs)
        name = func._schema.name
        if name == "aten::_local_scalar_dense":
            self.costs = replace(self.costs, waits=self.costs.waits + (derived or inputs[0].is_cuda))
            return result
        written = _written(func, args, kwargs or {})
        outputs = list(tree_iter(result))
        if derived:
            self._mark([*outputs, *written])
        if func.is_view or name.startswith(_FREE):
            return result
        unread = {id(value) for value in written} if name in _BLIND else set()
        moved = _bytes(value for value in inputs if id(value) not in unread) + _bytes([*written, *outputs])
        self.costs = replace(self.costs, bytes=self.costs.bytes + moved, calls=self.costs.calls + 1)
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors among an operator's arguments that it changes."""
    schema = func._schema
    values = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    names = {argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write}
    if schema.name.startswith(_FUSED):
        names -= {"found_inf"} | (set() if values.get("grad_scale") is not None else {"grads"})
    return [value for name in names for value in tree_iter(values.get(name)) if isinstance(value, Tensor)]


def _bytes(tensors: Iterable[Any]) -> int:
    """Of these tensors, one that stands there twice counted once."""
    unique = {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


def silence_profiler() -> None:
    """Keeps the profiler from writing to the terminal whenever it starts; it reads this when it does so first."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def _native_launches(step: Callable[[], object]) -> int:
    silence_profiler()
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        step()
    return sum(event.name in NATIVE_LAUNCHES for event in profile.function_events or ())


def kernels(events: Iterable[Any]) -> int:
    """How many of a profiler's events are kernels on a GPU: neither copies nor ranges, which are shown there too."""
    return sum(
        event.device_type == DeviceType.CUDA
        and not event.is_user_annotation
        and not event.name.startswith(("Memcpy", "Memset"))
        for event in events
    )


def _kernels_launched(step: Callable[[], object]) -> int:
    silence_profiler()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        step()
        torch.cuda.synchronize()
    return kernels(profile.events() or ())


def count_costs(step: Callable[[], object], params: Iterable[Tensor]) -> Costs:
    """Costs of one call of `step`, which has been called before, on parameters that have gradients."""
    params = list(params)
    mode = CostMode([*params, *(param.grad for param in params if param.grad is not None)])
    with mode:
        step()
    if any(param.is_cuda for param in params):
        return replace(mode.costs, calls=_kernels_launched(step))
    return replace(mode.costs, calls=mode.costs.calls + _native_launches(step))
