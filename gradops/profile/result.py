"""What is known of one batch size after both loops have run."""

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from gradops.bench.interleave import Samples, no_garbage_collection
from gradops.profile import memory, phases, trace
from gradops.profile.loop import NAMES, GradopsLoop, Loop, Record, Settings, TorchLoop
from gradops.profile.memory import Memory
from gradops.profile.phases import Cost
from gradops.profile.training import Source

WARMUPS = 3


@dataclass(frozen=True)
class Result:
    """One batch size; everything by loop.

    Attributes:
        batch_size: of one forward pass.
        images: that make one step.
        records: every step without the profiler, from the first on.
        samples: seconds of those after the warm-up, which took turns.
        costs: by phase, of the typical profiled step, as in the timelines.
        memory: of the same.
        trace: the profiled steps.
    """

    batch_size: int
    images: int
    records: dict[str, list[Record]]
    samples: dict[str, Samples]
    costs: dict[str, dict[str, Cost]]
    memory: dict[str, Memory]
    trace: trace.Trace

    def images_per_second(self, name: str) -> float:
        return self.images / self.samples[name].median

    @property
    def speedup(self) -> float:
        """Median over the rounds of torch's step's time over that of gradops."""
        return self.speedup_quartiles[1]

    @property
    def speedup_quartiles(self) -> tuple[float, float, float]:
        """Quartiles over the rounds of the same."""
        return self.samples["gradops"].faster_quartiles(self.samples["torch"])

    def profiler_overhead(self, name: str) -> float:
        """How much longer a profiled step takes, as a share."""
        profiled = statistics.median(step.whole.length for step in self.trace.steps(name)) * 1e-6
        return profiled / self.samples[name].median - 1


def run(
    source: Source,
    settings: Settings,
    batch_size: int | None,
    steps: int,
    profiled: int,
    report: Callable[[str], object],
) -> Result:
    """Trains with torch's own recipe and with gradops from the same weights on the same batches, in turns.

    Args:
        source: what is trained.
        settings: how.
        batch_size: None for the user's own.
        steps: timed steps of each.
        profiled: steps of each under the profiler, after those.
        report: called after each step, with its loop.
    """
    loops: list[Loop] = [
        TorchLoop(source.make(batch_size), settings),
        GradopsLoop(source.make(batch_size, ours=True), settings),
    ]
    records: dict[str, list[Record]] = {name: [] for name in NAMES}
    order = random.Random(0)
    with no_garbage_collection():
        for _ in range(WARMUPS + steps):
            order.shuffle(loops)
            for loop in loops:
                records[loop.name].append(loop.timed_step())
                report(loop.name)
        loops.sort(key=lambda loop: NAMES.index(loop.name))
        recorded = trace.record(loops, profiled)
    of_loop = {loop.name: recorded.steps(loop.name) for loop in loops}
    size = loops[0].training.batch_size
    return Result(
        size,
        size * settings.accumulate,
        records,
        {name: Samples([record.seconds for record in records[name][WARMUPS:]]) for name in NAMES},
        {name: phases.costs(of_loop[name]) for name in NAMES},
        {loop.name: memory.measure(loop, phases.typical(of_loop[loop.name])) for loop in loops},
        recorded,
    )


def trajectory(records: list[Record]) -> str:
    """The loss scale's values and for how many steps each stood: "65536 x3, 32768 x20"."""
    runs = [(scale, len(list(same))) for scale, same in groupby(record.loss_scale for record in records)]
    return ", ".join(f"{scale:g} x{count}" for scale, count in runs)
