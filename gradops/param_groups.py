"""The parameters of an optimizer's groups: which they are, their names, and whether the one pass can step them."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradops import backends
from gradops.distributed.shards import check_placements, is_sharded, local_tensor
from gradops.param_state import wants_master
from gradops.settings import Settings, with_l1
from gradops.stats import StepBuffers


def check_groups(param_groups: list[dict[str, Any]], settings: Settings) -> None:
    """Refuses what the one pass cannot do with these settings, before anything has changed.

    Raises:
        RuntimeError: naming the first parameter that cannot be stepped, and why, or why the backend cannot run.
        ValueError: a parameter stands twice in the groups, a group is differentiable or has an "l1" out of range, or
            masters are wanted of sharded parameters.
    """
    with_l1(param_groups, settings.l1)
    seen = set()
    for group in param_groups:
        if group.get("differentiable"):
            raise ValueError("differentiable=True cannot be fused; leave this optimizer to torch")
    for param, name in zip(params_of(param_groups), param_names(param_groups), strict=True):
        if param in seen:
            raise ValueError(f"parameter '{name}' is in the param_groups twice")
        check_placements(param, name)
        wants_master(param, settings)
        seen.add(param)
    buffers = StepBuffers()
    choice = choose_backend(param_groups, settings.backend)
    buffers.resize(param_names(param_groups), choice.device)
    plan = backends.make_plan(choice)
    plan.prepare(settings.checked())
    plan.bind_params(param_groups, param_names(param_groups), buffers)


def choose_backend(param_groups: list[dict[str, Any]], wanted: str | None) -> backends.Choice:
    """What steps these parameters.

    Raises:
        RuntimeError: the wanted backend cannot; the message says why.
    """
    choice = backends.choose(device_of(param_groups), wanted)
    return replace(choice, sharded=any(map(is_sharded, params_of(param_groups))))


def param_names(param_groups: list[dict[str, Any]]) -> tuple[str, ...]:
    """One name per parameter: those of named parameters, else `param_<position>`."""
    names: list[str] = []
    for group in param_groups:
        start = len(names)
        names += group.get("param_names") or [f"param_{start + i}" for i in range(len(group["params"]))]
    return tuple(names)


def params_of(param_groups: list[dict[str, Any]]) -> Iterable[Tensor]:
    return chain.from_iterable(group["params"] for group in param_groups)


def local_grads(param_groups: list[dict[str, Any]]) -> list[Tensor]:
    """The gradients that there are, in the memory of this process."""
    return [local_tensor(param.grad) for param in params_of(param_groups) if param.grad is not None]


def device_of(param_groups: list[dict[str, Any]]) -> torch.device:
    """Where the first parameter is, and so all must be."""
    first = next(iter(params_of(param_groups)), None)
    return torch.device("cpu") if first is None else first.device
