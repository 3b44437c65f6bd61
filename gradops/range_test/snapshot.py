"""Everything that training steps change, put back exactly as it was."""

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradops.one_pass.one_pass import OnePass

Undo = Callable[[], None]


@contextmanager
def restored(
    modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer, *others: Any, loader: Any = None
) -> Iterator[None]:
    """Puts back what the steps inside the block changed, also when they are interrupted.

    That is: parameters, buffers, plain attributes and gradients of the modules and of the optimizer; the optimizer's
    moments, hyper-parameters, loss scale, counters and statistics; the attributes and tensors of `others` (a
    GradScaler); the random numbers of torch on every device, of Python and of numpy; and the generators that the
    loader, its samplers and its data set hold. Tensors, dictionaries and lists keep their identity, so that whoever
    refers to them, a learning-rate scheduler for one, sees the values from before. Takes a copy of parameters and
    moments on their devices for the time of the block.

    Args:
        modules: the model, and a loss with parameters or buffers of its own.
        optimizer: torch's or gradops'.
        *others: objects whose attributes change.
        loader: where the batches come from. Worker processes that outlive an epoch and were running before keep the
            random numbers they drew.
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    devices = {param.device for param in params}
    with ExitStack() as stack:
        for undo in _random_numbers(devices):
            stack.callback(undo)
        for undo in _loader(loader):
            stack.callback(undo)
        parts = {id(part): part for module in modules for part in module.modules()}.values()
        params += [param for part in parts for param in part.parameters(recurse=False)]
        engines: list[Any] = []
        if isinstance(optimizer, OnePass):
            engine = optimizer.engine
            engines = [engine, engine.scaling, engine.buffers]
            if engine.protected is not None:
                stack.callback(engine.protected.keep)  # when the buffers are back
        stack.callback(_gradients(params))
        stack.callback(_kept([vars(thing) for thing in (*parts, optimizer, *others, *engines)]))
        yield


def _contents(tensors: Iterable[Tensor]) -> Undo:
    """The tensors' values, bit for bit. Torch lets nobody write to an expanded one, so that these need no copy."""
    written = {id(tensor): tensor for tensor in tensors if not _is_expanded(tensor)}.values()
    copies = [(tensor, tensor.detach().clone()) for tensor in written]

    @torch.no_grad()
    def undo() -> None:
        for tensor, copy in copies:
            tensor.copy_(copy)

    return undo


def _is_expanded(tensor: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _gradients(params: list[nn.Parameter]) -> Undo:
    """Which gradient each parameter has. They are taken away, so that backward does not add to them."""
    grads = [(param, param.grad) for param in params]
    for param in params:
        param.grad = None

    def undo() -> None:
        for param, grad in grads:
            param.grad = grad

    return undo


def _kept(container: Any) -> Undo:
    """What a dictionary or list holds, and those in it, and the contents of the tensors there."""
    tensors: list[Tensor] = []
    copies: dict[int, tuple[Any, Any]] = {}
    waiting = [container]
    while waiting:
        current = waiting.pop()
        if isinstance(current, Tensor):
            tensors.append(current)
        elif isinstance(current, (dict, list)) and id(current) not in copies:
            copies[id(current)] = current, current.copy()
            waiting += current.values() if isinstance(current, dict) else current
    put_back = _contents(tensors)

    def undo() -> None:
        for current, copy in copies.values():
            current.clear()
            (current.update if isinstance(current, dict) else current.extend)(copy)
        put_back()

    return undo


def _random_numbers(devices: set[torch.device]) -> Iterator[Undo]:
    yield _state(random.getstate, random.setstate)
    yield _state(torch.get_rng_state, torch.set_rng_state)
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"].random
        yield _state(numpy.get_state, numpy.set_state)
    if torch.cuda.is_initialized():
        yield _state(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    for device in devices:
        module: Any = torch.get_device_module(device)
        if device.type not in ("cpu", "cuda") and hasattr(module, "get_rng_state"):
            yield _state(partial(module.get_rng_state, device), partial(module.set_rng_state, device=device))


def _state(get: Callable[[], Any], put: Callable[[Any], Any]) -> Undo:
    state = get()
    return lambda: put(state)


def _loader(loader: Any) -> Iterator[Undo]:
    samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers += [getattr(sampler, "sampler", None) for sampler in samplers]
    holders = [loader, *samplers, getattr(loader, "dataset", None)]
    held = [value for holder in holders for value in getattr(holder, "__dict__", {}).values()]
    for value in {id(value): value for value in held}.values():
        if isinstance(value, torch.Generator):
            yield _state(value.get_state, value.set_state)
        elif isinstance(value, random.Random):
            yield _state(value.getstate, value.setstate)
        elif hasattr(bits := getattr(value, "bit_generator", None), "state"):
            yield _state(partial(getattr, bits, "state"), partial(setattr, bits, "state"))
    if isinstance(loader, torch.utils.data.DataLoader) and loader._iterator is None:
        yield lambda: _end_workers(loader)


def _end_workers(loader: Any) -> None:
    """Workers that outlive an epoch would go on from the random numbers they have drawn; new ones start afresh."""
    iterator, loader._iterator = loader._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()
