"""The parameters of an optimizer's groups: which they are, their names, and whether the one pass can step them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradops.backends import choose
from gradops.backends.checks import DTYPES, takes_part
from gradops.distributed.shards import check_placements, check_whole_units, is_sharded, local_tensor
from gradops.settings import Settings, with_l1
from gradops.stats import StepBuffers
from gradops.update_rule import UpdateRule

_STEPPABLE = (*DTYPES, torch.float64)


def check_groups(param_groups: list[dict[str, Any]], settings: Settings, rule: UpdateRule) -> None:
    """Refuses what the one pass cannot do with these settings, before anything has changed.

    Raises:
        RuntimeError: naming the first parameter that cannot be stepped, and why, or why the backend cannot run.
        ValueError: a parameter stands twice in the groups, a group is differentiable or has an "l1" out of range, or
            a shard has pieces of units that are to be clipped.
    """
    with_l1(param_groups, settings.l1)
    seen = set()
    for group in param_groups:
        if group.get("differentiable"):
            raise ValueError("differentiable=True cannot be fused; leave this optimizer to torch")
    for param, name in zip(params_of(param_groups), param_names(param_groups), strict=True):
        if param in seen:
            raise ValueError(f"parameter '{name}' is in the param_groups twice")
        seen.add(param)
    check_taking_part(param_groups, settings)
    buffers = StepBuffers()
    choice = choose_backend(param_groups, rule, settings.backend)
    buffers.resize(param_names(param_groups), choice.device)
    plan = choose.make_plan(choice, rule)
    plan.prepare(settings.checked(rule))
    plan.bind_params(param_groups, param_names(param_groups), buffers)


def check_taking_part(param_groups: list[dict[str, Any]], settings: Settings) -> None:
    """Refuses parameters that are to be trained, or have a gradient, where processes do not go with them.

    Raises:
        RuntimeError: this process's values are not a part of a parameter.
        ValueError: a part holds pieces of the units that clip_mode="agc" clips.
    """
    names = iter(param_names(param_groups))
    for group in param_groups:
        clips_units = settings.clip_mode == "agc" and group.get("agc", True)
        for param, name in zip(_params_in(group), names, strict=False):
            if takes_part(param):
                check_placements(param, name)
                if clips_units:
                    check_whole_units(param, name)


def choose_backend(param_groups: list[dict[str, Any]], rule: UpdateRule, wanted: str | None) -> choose.Choice:
    """What steps these parameters by this rule.

    Raises:
        RuntimeError: the wanted backend cannot; the message says why.
    """
    device, name = device_of(param_groups), _name_of_float64(param_groups)
    if name is None:
        choice = choose.backend_for(device, rule, wanted)
    elif wanted in (None, "torch"):
        choice = replace(choose.backend_for(device, rule, "torch"), reason=f"parameter '{name}' is float64")
    else:
        raise RuntimeError(
            f"backend={wanted!r} cannot step parameter '{name}': it is float64, which only torch's operations step"
        )
    return replace(choice, sharded=any(map(is_sharded, params_of(param_groups))))


def _name_of_float64(param_groups: list[dict[str, Any]]) -> str | None:
    names = zip(params_of(param_groups), param_names(param_groups), strict=True)
    return next((name for param, name in names if param.dtype == torch.float64 and takes_part(param)), None)


def param_names(param_groups: list[dict[str, Any]]) -> tuple[str, ...]:
    """One name per parameter: those of named parameters, else `param_<position>`.

    A group whose "params" somebody has made longer or shorter than its names has lost them.
    """
    names: list[str] = []
    for group in param_groups:
        start, count = len(names), len(_params_in(group))
        of_group = group.get("param_names") or ()
        names += map(str, of_group) if len(of_group) == count else [f"param_{start + i}" for i in range(count)]
    return tuple(names)


def params_of(param_groups: list[dict[str, Any]]) -> Iterable[Tensor]:
    """The parameters of all groups in their order.

    Raises:
        TypeError: a group's "params" holds something else.
    """
    return chain.from_iterable(map(_params_in, param_groups))


def _params_in(group: dict[str, Any]) -> Sequence[Tensor]:
    params = group["params"]
    if not isinstance(params, (list, tuple)):
        if not isinstance(params, Iterable):
            got = type(params).__name__
            raise TypeError(f"'params' of a param_group must be a list or another sequence, got {got}")
        params = list(params)
    for param in params:
        if not isinstance(param, Tensor):
            raise TypeError(f"'params' of a param_group holds a {type(param).__name__}; expected tensors")
    return params


def local_grads(param_groups: list[dict[str, Any]]) -> list[Tensor]:
    """The gradients that there are, in the memory of this process."""
    return [local_tensor(param.grad) for param in params_of(param_groups) if param.grad is not None]


def device_of(param_groups: list[dict[str, Any]]) -> torch.device:
    """Where the first parameter that can be stepped is, and so all must be that take part.

    Frozen ones decide where there are no others, and the CPU where none can be stepped.
    """
    able = [param for param in params_of(param_groups) if param.dtype in _STEPPABLE and not param.is_meta]
    first = next((param for param in able if takes_part(param)), able[0] if able else None)
    return torch.device("cpu") if first is None else first.device
