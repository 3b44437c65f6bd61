"""The average of a model's buffers, such as BatchNorm's running statistics, beside that of its parameters.

It is one float32 tensor in the state of one parameter, and follows that parameter's updates: so it is saved, loaded,
copied and counted as every average is.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from gradops.backends.torch.ema import average_, ema_weights
from gradops.backends.torch.math import wide_dtype
from gradops.distributed.shards import is_sharded
from gradops.policies.ema import WeightEma

EMA_BUFFERS = "ema_buffers"


def averaged_buffers(ema: WeightEma, device: torch.device) -> list[Tensor]:
    """The buffers that are averaged: floating-point ones on the device, each once, in the modules' order."""
    modules = (ema.buffers,) if isinstance(ema.buffers, nn.Module) else (ema.buffers or ())
    found = {
        id(buffer): buffer
        for module in modules
        for buffer in _buffers_in(module)
        if buffer.is_floating_point() and buffer.device == device and not is_sharded(buffer)
    }
    return list(found.values())


def fit_ema_buffers(optimizer: Any, device: torch.device) -> None:
    """Gives the state of one parameter the average of the buffers, which begins as they are, or takes it."""
    buffers = [] if optimizer.ema is None else averaged_buffers(optimizer.ema, device)
    now = _together(buffers) if buffers else None
    states = list(_states(optimizer))
    carrier = next((state for state in states if EMA_BUFFERS in state), states[0] if states else None)
    if carrier is None:
        return
    if now is None:
        carrier.pop(EMA_BUFFERS, None)
        return
    average = carrier.get(EMA_BUFFERS)
    if not isinstance(average, Tensor) or average.shape != now.shape:
        carrier[EMA_BUFFERS] = now
    elif average.device != device or average.dtype != now.dtype:
        carrier[EMA_BUFFERS] = average.to(now)


def average_of_buffers(optimizer: Any, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Each averaged buffer with its part of the average; none before the first update."""
    state = _carrier(optimizer)
    if state is None:
        return []
    buffers = averaged_buffers(optimizer.ema, device)
    if sum(buffer.numel() for buffer in buffers) != state[EMA_BUFFERS].numel():
        return []  # the modules have others now: the next step begins anew
    parts = state[EMA_BUFFERS].split([buffer.numel() for buffer in buffers])
    return [(buffer, part.view(buffer.shape)) for buffer, part in zip(buffers, parts, strict=True)]


def count_of_average(optimizer: Any) -> Tensor | None:
    """The updates so far of the parameter whose state has the average; None where there is none."""
    state = _carrier(optimizer)
    return None if state is None else state["step"].clone()


@torch.no_grad()
def average_buffers(optimizer: Any, before: Tensor) -> None:
    """After a step: averages the buffers as they are now, unless it was skipped.

    Args:
        optimizer: of the average.
        before: `count_of_average` before the step.
    """
    state, ema = _carrier(optimizer), optimizer.ema
    if state is None or ema is None:
        return
    now, step = _together(averaged_buffers(ema, before.device)), state["step"]
    if now.shape == state[EMA_BUFFERS].shape:
        weight = ema_weights(ema, step.to(wide_dtype(step.device)))
        average_(state[EMA_BUFFERS], now, weight, skip=step == before)
    else:
        fit_ema_buffers(optimizer, before.device)


def _together(buffers: list[Tensor]) -> Tensor:
    if not buffers:
        return torch.zeros(0, dtype=torch.float32, device="cpu")
    flat = (buffer if buffer.dim() == 1 else buffer.reshape(-1) for buffer in buffers)
    return torch.cat([buffer if buffer.dtype == torch.float32 else buffer.float() for buffer in flat])


def _buffers_in(module: nn.Module) -> Iterator[Tensor]:
    """As `module.buffers()`, in its order, in a fraction of its time, but one may come twice."""
    for buffer in module._buffers.values():
        if buffer is not None:
            yield buffer
    for child in module._modules.values():
        if child is not None:
            yield from _buffers_in(child)


def _states(optimizer: Any) -> Iterator[MutableMapping[str, Any]]:
    """The states in the order of the parameters."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            state = optimizer.state.get(param)
            if isinstance(state, MutableMapping) and state.get("step") is not None:
                yield state


def _carrier(optimizer: Any) -> MutableMapping[str, Any] | None:
    """The state that has the average."""
    if optimizer.ema is None or not optimizer.ema.buffers:
        return None
    return next((state for state in _states(optimizer) if isinstance(state.get(EMA_BUFFERS), Tensor)), None)
