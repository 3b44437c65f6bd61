"""Peak memory of a step: what stays, and what its phases take on top."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from gradops.profile.loop import PHASES, UPDATE, Loop
from gradops.profile.trace import Step

_MEMORY = "[memory]"
_DEVICE_TYPES = {"cpu": 0, "cuda": 1}


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        params: of parameters and buffers.
        grads: of the gradients at their most.
        state: of the optimizer.
        activations: what a forward pass leaves for its backward pass.
        temporaries: the most that the phases after the backward pass take at once on top of everything.
        peaks: by phase, everything together.
        curve: (microseconds since the step's beginning, bytes), everything together.
    """

    params: int
    grads: int
    state: int
    activations: int
    temporaries: int
    peaks: dict[str, int]
    curve: list[tuple[float, int]]

    @property
    def peak(self) -> int:
        return max(self.peaks.values(), default=self.params + self.state)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in set(tensors))


def measure(loop: Loop, step: Step) -> Memory:
    """Memory of a recorded step of `loop`, whose gradients are None before it and after it."""
    model, optimizer = loop.training.model, loop.training.optimizer
    params = _size([*model.parameters(), *model.buffers()])
    state = _size(value for entry in optimizer.state.values() for value in entry.values() if isinstance(value, Tensor))
    stays = params + state
    live = list(_live(step, _DEVICE_TYPES[loop.settings.device]))
    peaks: dict[str, int] = {}
    activations = temporaries = 0
    for event in (event for event in step.events if event.is_range and event.name in PHASES):
        before = max((found for found in live if found[0] <= event.start), default=(0.0, 0))[1]
        inside = [taken for moment, taken in live if event.start < moment <= event.end]
        peaks[event.name] = max(peaks.get(event.name, 0), stays + max([before, *inside]))
        if event.name == "forward" and inside:
            activations = max(activations, inside[-1] - before)
        if event.name in UPDATE and inside:
            temporaries = max(temporaries, max(inside) - before)
    last = live[-1][1] if live else 0
    curve = [(moment - step.whole.start, stays + taken) for moment, taken in [(step.whole.start, 0), *live]]
    curve.append((step.whole.length, stays + last))
    return Memory(params, _size(loop.params), state, activations, temporaries, peaks, curve)


def _live(step: Step, device: int) -> Iterator[tuple[float, int]]:
    """Bytes that are taken after each change; what was taken before the step is left out."""
    taken: dict[int, int] = {}
    total = 0
    for event in step.events:
        if event.name != _MEMORY or event.args.get("Device Type") != device:
            continue
        address, size = event.args["Addr"], event.args["Bytes"]
        if size > 0:
            taken[address] = size
            total += size
        else:
            total -= taken.pop(address, 0)
        yield event.start, total
