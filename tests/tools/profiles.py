"""A profile's result that is written by hand: nothing runs."""

from test_phases import RANGE, event

from gradops.bench.interleave import Samples
from gradops.profile import phases
from gradops.profile.loop import NAMES, Record
from gradops.profile.memory import Memory
from gradops.profile.result import Result
from gradops.profile.trace import Trace

# 600, 1,200 and 300 microseconds of phases after the backward pass, and 700 and 800 between them.
TORCH = [("backward", 100, 5000), ("norm", 5200, 600), ("clip", 6500, 1200), ("optimizer", 8500, 300)]
GRADOPS = [("backward", 100, 5000), ("optimizer", 5200, 900), ("gradops.update", 5300, 600)]


def written(nonfinite=None):
    """Steps of 10 ms of both loops, with a Record each; `nonfinite` has the count of inf and NaN by parameter."""
    events = []
    for start, name, of_loop in ((0, "torch", TORCH), (20_000, "gradops", GRADOPS)):
        events.append(event(f"{name} step", RANGE, start, 10_000))
        events += [event(phase, RANGE, start + begin, length) for phase, begin, length in of_loop]
    trace = Trace({"traceEvents": events})
    memory = Memory(1, 1, 1, 1, 1, {"backward": 2**20}, [(0.0, 2**20), (10_000.0, 2**20)])
    return Result(
        batch_size=4,
        images=4,
        records={name: [Record(0.01, 1.0, 65536.0, skipped=False, nonfinite=nonfinite)] for name in NAMES},
        samples=dict.fromkeys(NAMES, Samples([0.01, 0.01, 0.01])),
        costs={name: phases.costs(trace.steps(name)) for name in NAMES},
        memory=dict.fromkeys(NAMES, memory),
        trace=trace,
    )
