"""Where the time of a step goes: sums over the named ranges of a trace."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gradops.bench.costs import NATIVE_LAUNCHES
from gradops.profile.loop import PHASES, UPDATE
from gradops.profile.trace import DEVICE_CATEGORIES, Event, Step

OTHER = "other"
_NOTHING = 1e-9  # seconds
# What the one pass is made of, after the ranges that the library emits.
PARTS = (
    "gradops.follow_params",
    "gradops.grad_stats",
    "gradops.param_stats",
    "gradops.update",
    "gradops.one_pass_step",
    "gradops.write_stats",
)
# Operators that touch no element.
_FREE = frozenset(
    f"aten::{name}"
    for name in [
        "view",
        "_unsafe_view",
        "as_strided",
        "detach",
        "t",
        "transpose",
        "permute",
        "expand",
        "expand_as",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "reshape",
        "alias",
        "unbind",
        "split",
        "narrow",
        "flatten",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "resize_",
        "to",
        "_to_copy",
        "lift_fresh",
        "result_type",
        "item",
        "_local_scalar_dense",
        "is_nonzero",
        "contiguous",
        "detach_",
        "set_",
        "view_as",
        "movedim",
        "chunk",
    ]
)


@dataclass(frozen=True)
class Cost:
    """What a phase costs in one step.

    Attributes:
        seconds: by the host's clock.
        launches: kernels launched; on a CPU operators that touch data and calls of the one pass.
        waits: host synchronisations; on a CPU values of tensors that Python reads.
        device_seconds: of the kernels that it launched, whenever they ran.
    """

    seconds: float = 0.0
    launches: int = 0
    waits: int = 0
    device_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.seconds + other.seconds,
            self.launches + other.launches,
            self.waits + other.waits,
            self.device_seconds + other.device_seconds,
        )


def typical(steps: Iterable[Step]) -> Step:
    """The step that is nearest to the medians, in its length and in what comes after its backward pass."""
    steps = list(steps)
    each = [(step.whole.length * 1e-6, after_backward(seconds_of(_of_step(step)))) for step in steps]
    medians = [statistics.median(found) for found in zip(*each, strict=True)]

    def distance(found: tuple[float, float]) -> float:
        ratios = ((mine + _NOTHING) / (median + _NOTHING) for mine, median in zip(found, medians, strict=True))
        return sum(abs(math.log(ratio)) for ratio in ratios)

    return min(zip(each, steps, strict=True), key=lambda pair: distance(pair[0]))[1]


def after_backward(seconds: Mapping[str, float]) -> float:
    """Seconds of what comes after the backward pass, of those of each phase.

    The time between its phases is not among them: nothing of the training runs there, one range is closed and the
    next is opened.
    """
    return sum(spent for name, spent in seconds.items() if name in UPDATE)


def whole(seconds: Mapping[str, float]) -> float:
    """Seconds of the step, of those of each phase; the parts of the one pass are inside a phase."""
    return sum(spent for name, spent in seconds.items() if name not in PARTS)


def seconds_of(costs: Mapping[str, Cost]) -> dict[str, float]:
    """The seconds alone, by phase."""
    return {name: cost.seconds for name, cost in costs.items()}


def costs(steps: Iterable[Step]) -> dict[str, Cost]:
    """Of the typical step, by phase, then `OTHER`, then by part of the one pass; absent ones are left out."""
    found = _of_step(typical(steps))
    return {name: found[name] for name in (*PHASES, OTHER, *PARTS) if name in found}


def _of_step(step: Step) -> dict[str, Cost]:
    found: dict[str, Cost] = {}
    ranges = [event for event in step.events if event.is_range and event.name in PHASES]
    for event in ranges:
        found[event.name] = found.get(event.name, Cost()) + Cost(event.length * 1e-6)
    inside = sum(cost.seconds for cost in found.values())
    found[OTHER] = Cost(max(0.0, step.whole.length * 1e-6 - inside))
    for event in step.events:
        if event.is_range and event.name in PARTS:
            found[event.name] = found.get(event.name, Cost()) + Cost(event.length * 1e-6)
    for start, cost in _work(step.events):
        phase = next((event.name for event in ranges if event.start <= start < event.end), OTHER)
        found[phase] = found.get(phase, Cost()) + cost
    return found


def _work(events: list[Event]) -> Iterator[tuple[float, Cost]]:
    """Launches, waits and device time, each with the moment at which the host asked for it."""
    runtime = [event for event in events if event.category.startswith("cuda_")]
    if runtime:
        asked = {event.args.get("correlation"): event.start for event in runtime}
        for event in runtime:
            yield event.start, Cost(launches="Launch" in event.name, waits="Synchronize" in event.name)
        for event in events:
            if event.category in DEVICE_CATEGORIES:
                yield asked.get(event.args.get("correlation"), event.start), Cost(device_seconds=event.length * 1e-6)
        return
    for event, outermost, innermost in nested(events):
        launches = event.name in NATIVE_LAUNCHES or (event.category == "cpu_op" and event.name not in _FREE)
        # Inside an operator it is the CPU's own way to do it, and not Python that asks.
        waits = event.name == "aten::item" and outermost
        if waits or (launches and innermost):
            yield event.start, Cost(launches=launches and innermost, waits=waits)


def nested(events: list[Event]) -> Iterator[tuple[Event, bool, bool]]:
    """Operators and ranges of the library, in order: whether none is around them, and whether none is inside them."""
    open_ones: dict[object, list[Event]] = {}
    kept = [event for event in events if event.category == "cpu_op" or (event.is_range and "gradops." in event.name)]
    outermost, parents = {}, set()
    for event in kept:
        around = open_ones.setdefault(event.thread, [])
        while around and not around[-1].covers(event):
            around.pop()
        outermost[id(event)] = not around
        if around:
            parents.add(id(around[-1]))
        around.append(event)
    for event in kept:
        yield event, outermost[id(event)], id(event) not in parents
