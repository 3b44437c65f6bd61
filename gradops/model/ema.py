"""The averages of `ema=gradops.WeightEma(...)` in a model: for the time of a block, or in a model of its own."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gradops.one_pass.ema_buffers import average_of_buffers
from gradops.one_pass.one_pass import OnePass


@contextmanager
def ema_weights(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside the block the model has its averaged weights; after it, also where it raises, its own.

    Averages and parameters of one dtype change places on their device, one at a time, so that nothing is kept twice;
    every parameter's version counter moves. A half-precision parameter is the average rounded, and its own values are
    kept for the time of the block. A parameter that has no average yet, since it has never been updated, stays, and so
    do buffers, but for those that `WeightEma(buffers=...)` averages. Modules that `fully_shard` has prepared are
    resharded on the way in and out.

    Args:
        model: of the optimizer's parameters; it may be wrapped, by DDP for one.
        optimizer: with `ema` set.

    Raises:
        TypeError: the optimizer is not one of gradops.
        ValueError: it has no `ema`, or none of the model's parameters.
        RuntimeError: the block is inside another for the same optimizer. `optimizer.step()`, `state_dict()` and
            `load_state_dict()` raise it inside the block.
    """
    checked = _checked(model, optimizer, "gradops.ema_weights")
    with ExitStack() as stack:
        checked.engine.averaged = True
        stack.callback(setattr, checked.engine, "averaged", False)
        stack.callback(_reshard, model)  # what the forwards have gathered of the averages
        for live, average in _averaged(model, checked):
            stack.callback(_swap(live, average))
        yield


def ema_model(model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    """A copy of the model with the averaged weights, in evaluation mode and without gradients.

    Its state dict has the model's keys, and so loads into timm's `ModelEmaV3.module` and torch's
    `AveragedModel.module`.

    Args:
        model: of the optimizer's parameters; of one in DDP or compiled, the module inside is copied.
        optimizer: with `ema` set.

    Raises:
        TypeError: the optimizer is not one of gradops, or the model is sharded, and so cannot be copied.
        ValueError: the optimizer has no `ema`, or none of the model's parameters.
    """
    checked = _checked(model, optimizer, "gradops.ema_model")
    if _sharded(model):
        raise TypeError(
            "gradops.ema_model cannot copy a model that fully_shard has prepared; save its state dict inside "
            "gradops.ema_weights"
        )
    bare = _bare(model)
    copied = copy.deepcopy(bare)
    copies = dict(zip(map(id, _tensors(bare)), _tensors(copied), strict=True))
    with torch.no_grad():
        for live, average in _averaged(bare, checked):
            copies[id(live)].copy_(average)
    return copied.eval().requires_grad_(False)


def _checked(model: nn.Module, optimizer: torch.optim.Optimizer, what: str) -> OnePass:
    if not isinstance(optimizer, OnePass):
        raise TypeError(f"{what} takes an optimizer of gradops, or that gradops.wrap has taken, got {optimizer!r}")
    optimizer.engine.check_weights(what)
    if optimizer.ema is None:
        raise ValueError(f"{what}: the optimizer averages no weights; give it ema=gradops.WeightEma(...)")
    _reshard(model)
    known = {id(param) for group in optimizer.param_groups for param in group["params"]}
    if not any(id(param) in known for param in model.parameters()):
        raise ValueError(f"{what}: the optimizer has none of the model's parameters")
    return optimizer


def _averaged(model: nn.Module, optimizer: OnePass) -> list[tuple[Tensor, Tensor]]:
    """The model's parameters and averaged buffers, each with its average."""
    of_model = {id(tensor) for tensor in _tensors(model)}
    params = [param for group in optimizer.param_groups for param in group["params"] if id(param) in of_model]
    averages = [(param, optimizer.state.get(param, {}).get("ema")) for param in params]
    pairs = [(param, average) for param, average in averages if isinstance(average, Tensor)]
    buffers = average_of_buffers(optimizer, optimizer.engine.buffers.scalars.device)
    return pairs + [(buffer, average) for buffer, average in buffers if id(buffer) in of_model]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once."""
    return [*model.parameters(), *model.buffers()]


@torch.no_grad()
def _swap(live: Tensor, average: Tensor) -> Callable[[], None]:
    """Puts the average into the live tensor; returns what undoes it."""
    if live.dtype == average.dtype:
        _exchange(live, average)
        return lambda: _exchange(live, average)
    kept = live.detach().clone()
    live.copy_(average)
    return lambda: _copy(kept, live)


@torch.no_grad()
def _exchange(one: Tensor, other: Tensor) -> None:
    kept = one.detach().clone()
    one.copy_(other)
    other.copy_(kept)


@torch.no_grad()
def _copy(kept: Tensor, live: Tensor) -> None:
    live.copy_(kept)


def _sharded(model: nn.Module) -> list[Any]:
    """The modules that fully_shard has prepared."""
    return [part for part in model.modules() if hasattr(part, "reshard") and hasattr(part, "unshard")]


def _reshard(model: nn.Module) -> None:
    """Has the model's parameters be those of the optimizer, and the next forward gather them."""
    for part in _sharded(model):
        part.reshard()


def _bare(model: Any) -> nn.Module:
    """The module inside of DDP and torch.compile."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model._orig_mod
    return model
