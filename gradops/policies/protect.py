"""`protect`: a model's buffers go back to what they were where a step is skipped.

A batch with an inf or NaN leaves parameters alone, since its step is skipped. By then it has entered the running
statistics of BatchNorm, in the forward, and would stay there for ever.
"""

import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from gradops.distributed.shards import local_tensor

Protect = None | nn.Module | Iterable[nn.Module]

# A buffer by the module that has it and the name it has there: a forward may put another tensor in its place.
_Place = tuple[nn.Module, str]

# By the ids of their modules. Two optimizers that protect the same modules (a GAN's) share what is kept of them.
_shared: "weakref.WeakValueDictionary[frozenset[int], Protected]" = weakref.WeakValueDictionary()


def protect_setting(value: Any, name: str = "protect") -> None | nn.Module | tuple[nn.Module, ...]:
    """The setting with an iterable, which may be a generator, as a tuple.

    Args:
        value: of the setting.
        name: of it.

    Raises:
        TypeError: it is neither a module, an iterable of modules nor None.
    """
    if value is None or isinstance(value, nn.Module):
        return value
    if isinstance(value, Tensor) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a torch.nn.Module, an iterable of them or None, got {type(value).__name__}")
    modules = tuple(value)
    for module in modules:
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} must hold torch.nn.Modules, got one {type(module).__name__}")
    return modules


def protected(value: Protect) -> "Protected | None":
    """What keeps the buffers of these modules, as they are now."""
    setting = protect_setting(value)
    modules = (setting,) if isinstance(setting, nn.Module) else setting
    if not modules:
        return None
    key = frozenset(map(id, modules))
    found = _shared.get(key)
    if found is None:
        _shared[key] = found = Protected(modules)
    found.keep()
    return found


@dataclass
class _Group:
    """The buffers of one device and dtype; `now` and `kept` have the values of all of them, one after the other."""

    places: list[_Place]
    live: list[Tensor]
    now: Tensor
    kept: Tensor
    now_parts: list[Tensor]


class Protected:
    """Keeps the buffers of modules, of every dtype, as they were after the last applied step.

    What it writes to stays at fixed addresses as long as the buffers keep their shapes, dtypes and devices, and nothing
    waits for a device, so that a CUDA graph can hold a step.

    Args:
        modules: whose buffers, and those of their submodules.
    """

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        self.modules = modules
        self._kept: dict[_Place, Tensor] = {}
        self._layout: dict[_Place, Any] | None = None  # None: must be laid out anew
        self._groups: list[_Group] = []
        self._known: list[tuple[dict[str, Any], str, Any]] = []  # every buffer and module, and where it stands
        self._dicts: list[dict[str, Any]] = []
        self._sizes = -1
        self._hooks: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
        weakref.finalize(self, _remove, self._hooks)

    @torch.no_grad()
    def keep(self) -> None:
        """Has skipped steps go back to the buffers as they are now."""
        if not all(map(_is_whole, self.modules)):
            return  # a copy in the making, of a module that refers to its optimizer; kept values follow
        self._follow()
        for group in self._groups:
            torch._foreach_copy_(list(_parts(group.kept, group.live)), group.live)

    @torch.no_grad()
    def keep_loaded(self, module: nn.Module) -> None:
        """The same for the buffers of one module, without its submodules': a checkpoint was loaded there."""
        for name, buffer in module._buffers.items():
            kept = self._kept.get((module, name))
            if buffer is None or kept is None:
                continue
            memory = _memory(buffer)
            if _spec(memory) == _spec(kept):
                kept.copy_(memory)
            else:
                self._kept[module, name], self._layout = memory.clone(), None

    @torch.no_grad()
    def after_step(self, before: Tensor, after: Tensor) -> None:
        """Puts the buffers back where a step was skipped, and keeps them where it was applied.

        Args:
            before, after: the numbers of steps taken and skipped, around the step, on its device.
        """
        self._follow()
        for group in self._groups:
            if group.now.device.type == "cpu" != after.device.type:
                continue  # deciding there would wait for the device
            taken, skipped = (after != before).to(group.now.device, non_blocking=True).unbind()
            torch._foreach_copy_(group.now_parts, group.live)
            torch.where(skipped, group.kept, group.now, out=group.now)
            torch.where(taken, group.now, group.kept, out=group.kept)
            torch._foreach_copy_(group.live, group.now_parts)

    def saved(self) -> list[tuple[nn.Module, str, Tensor]]:
        """What is kept, for a copy or a pickle."""
        return [(module, name, kept) for (module, name), kept in self._kept.items()]

    @torch.no_grad()
    def restore(self, saved: list[tuple[nn.Module, str, Tensor]]) -> None:
        """Takes what another's `saved` gave."""
        self._kept = {(module, name): kept.clone() for module, name, kept in saved}
        self._layout = None

    def _follow(self) -> None:
        """Finds the tensors that the modules have now; what was kept stays, converted where dtype or device changed."""
        if self._layout is not None and not self._has_moved():
            return
        modules = list(dict.fromkeys(part for module in self.modules for part in module.modules()))
        self._dicts = [entries for module in modules for entries in (module._buffers, module._modules)]
        self._sizes = sum(map(len, self._dicts))
        self._known = [(entries, *entry) for entries in self._dicts for entry in entries.items()]
        for module in modules:
            if module not in self._hooks:
                self._hooks[module] = module.register_load_state_dict_post_hook(_AfterLoad(self))
        live = {
            (module, name): _memory(buffer)
            for module in modules
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_meta
        }
        layout = {place: _spec(memory) for place, memory in live.items()}
        if layout == self._layout:
            for group in self._groups:
                group.live = [live[place] for place in group.places]
        else:
            self._lay_out(live)
            self._layout = layout

    def _has_moved(self) -> bool:
        if sum(map(len, self._dicts)) != self._sizes:
            return True
        return any(entries.get(name) is not entry for entries, name, entry in self._known)

    def _lay_out(self, live: dict[_Place, Tensor]) -> None:
        def kind(place: _Place) -> str:
            return f"{live[place].device} {live[place].dtype}"

        self._groups, before, self._kept = [], self._kept, {}
        for _, group in groupby(sorted(live, key=kind), key=kind):
            places = list(group)
            tensors = [live[place] for place in places]
            kept = torch.cat([_kept_or_live(before.get(place), live[place]).reshape(-1) for place in places])
            now = torch.empty_like(kept)
            self._groups.append(_Group(places, tensors, now, kept, list(_parts(now, tensors))))
            self._kept.update(zip(places, _parts(kept, tensors), strict=True))


class _AfterLoad:
    """A module's hook: `load_state_dict` has written its buffers."""

    def __init__(self, keeper: Protected) -> None:
        self.keeper = weakref.ref(keeper)

    def __call__(self, module: nn.Module, _: Any) -> None:
        keeper = self.keeper()
        if keeper is not None:
            keeper.keep_loaded(module)

    def __reduce__(self) -> Any:
        """A copied or pickled module gets a hook that does nothing and that needs no gradops."""
        return getattr, (nullcontext(), "__exit__")


def _remove(hooks: Any) -> None:
    for handle in hooks.values():
        handle.remove()


def _is_whole(module: nn.Module) -> bool:
    """Whether copy or pickle have filled the module and its submodules."""
    return "_modules" in vars(module) and all(_is_whole(part) for part in module._modules.values() if part is not None)


def _memory(buffer: Tensor) -> Tensor:
    """This process's part of the buffer, each element once, as a tensor whose writes autograd does not count.

    A forward in evaluation mode has saved it for its backward, which may come after this step.
    """
    data = local_tensor(buffer).data
    if data.element_size() == 1:
        data = data.view(torch.uint8)  # torch.where takes no float8 before torch 2.7
    return data[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in data.stride())]


def _spec(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device


def _parts(flat: Tensor, like: list[Tensor]) -> Iterable[Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like])
    return (piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True))


def _kept_or_live(kept: Tensor | None, live: Tensor) -> Tensor:
    """What was kept, if it is of this shape; a buffer that has just come, or changed its shape, as it is."""
    return live if kept is None or kept.shape != live.shape else kept.to(live.device, live.dtype)
