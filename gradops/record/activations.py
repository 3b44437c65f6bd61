"""Statistics of what the layers of a model put out, by forward hooks."""

import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gradops.backends.checks import DTYPES
from gradops.backends.torch.activations import BINS, COUNTS, HIGHEST_EXPONENT, LOWEST_EXPONENT
from gradops.record.ring import Column

# Layers whose output is their input.
_SHOW_NOTHING_NEW = (nn.Identity, nn.Flatten, nn.Unflatten)

# float64 is measured as float32.
_MEASURED = (*DTYPES, torch.float64)

# In the order in which a row holds them.
MEASURES = ("mean", "std", "abs_max")
COUNTED = ("numel", "near_zero", "negative", "nonfinite")


def histogram_edges() -> list[float]:
    """The inner edges of the histogram's bins, ascending: the powers of two from 2^-10 to 2^16, their negatives, and 0.

    The bins are symmetric: a value at an edge belongs to the bin farther from 0, and 0 to the first positive one.
    """
    positive = [2.0**exponent for exponent in range(LOWEST_EXPONENT, HIGHEST_EXPONENT + 1)]
    return [-edge for edge in reversed(positive)] + [0.0] + positive


def leaf_modules(model: nn.Module) -> list[str]:
    """Names of the modules that have no modules in them, in the model's order; those that pass on their input, not."""
    leaves = ((name, module) for name, module in model.named_modules() if not any(module.children()))
    return [name for name, module in leaves if not isinstance(module, _SHOW_NOTHING_NEW)]


class ActivationWatch:
    """Measures the outputs of some of a model's modules while it trains.

    A forward pass is looked at while its module is in training mode and gradients are on. Of several passes before one
    step, as in gradient accumulation, the last one counts; of several tensors in one output, the first one.

    Args:
        model: the model.
        modules: names of the modules to watch, as in `model.named_modules()`; None for its leaves.
        near_zero: the largest magnitude that counts as near zero.

    Raises:
        ValueError: the model has no module of such a name.
    """

    def __init__(self, model: nn.Module, modules: Iterable[str] | None, near_zero: float) -> None:
        known = dict(model.named_modules())
        self.layers = leaf_modules(model) if modules is None else list(modules)
        for name in self.layers:
            if name not in known:
                raise ValueError(f"the model has no module '{name}'")
        self.near_zero = near_zero
        self.on = True
        self._seen: dict[int, tuple[Tensor, Tensor]] = {}
        self._handles = [
            known[name].register_forward_hook(_Hook(self, known[name], row)) for row, name in enumerate(self.layers)
        ]

    def columns(self) -> list[Column]:
        """What a step adds to the record."""
        return [
            Column("activation_measures", torch.float32, (len(self.layers), len(MEASURES))),
            Column("activation_counts", torch.int64, (len(self.layers), COUNTS + BINS)),
        ]

    def take(self, row: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """What was measured since the last call: pairs of a place in a ring's row and what belongs there."""
        seen, self._seen = self._seen, {}
        for index, (measures, counts) in seen.items():
            yield row["activation_measures"][index], measures
            yield row["activation_counts"][index], counts

    def measure(self, index: int, output: Any) -> None:
        """Takes the statistics of one module's output; leaves alone what has none."""
        tensor = _first_tensor(output)
        if tensor is not None and not _capturing(tensor):
            self._seen[index] = torch.ops.gradops.activation_stats(tensor, self.near_zero)

    def close(self) -> None:
        """Removes every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class _Hook:
    """The hook on one module. It belongs to that very module: in a copy of the model it does nothing."""

    def __init__(self, watch: ActivationWatch, module: nn.Module, index: int) -> None:
        self._watch = weakref.ref(watch)
        self._module = weakref.ref(module)
        self._index = index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        watch = self._watch()
        if watch is None or not watch.on or not module.training or self._module() is not module:
            return
        # Entering what is not compiled takes as long as a small layer, so only a compiler is led there.
        measure = _measure_outside if torch.compiler.is_compiling() else _measure
        measure(watch, self._index, output)

    def __reduce__(self) -> Any:
        return _NoHook, ()


def _measure(watch: ActivationWatch, index: int, output: Any) -> None:
    if torch.is_grad_enabled():
        with torch.no_grad():
            watch.measure(index, output)


# torch.compiler.disable would import the compiler here and now.
_measure_outside = torch._disable_dynamo(_measure)


class _NoHook:
    """What is left of a hook in a copy of its module, or in a file."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        pass


def _first_tensor(output: Any) -> Tensor | None:
    """The first tensor with statistics in a module's output: a plain, dense one of real numbers."""
    if isinstance(output, Tensor):
        if not _is_plain(output):
            return None
        return output.float() if output.dtype == torch.float64 else output
    if isinstance(output, dict):
        output = output.values()
    elif not isinstance(output, (list, tuple)):
        return None
    return next((tensor for tensor in map(_first_tensor, output) if tensor is not None), None)


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.layout == torch.strided
        and tensor.dtype in _MEASURED
        and not tensor.is_neg()
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _capturing(tensor: Tensor) -> bool:
    """Whether what is launched now goes into a CUDA graph, whose replays no hook sees."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
