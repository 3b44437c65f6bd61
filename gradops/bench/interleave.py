"""Timing of many functions in turns, so that what else happens on the machine meets all of them alike."""

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

# Shorter samples would measure the clock and the loop around the call.
_SAMPLE_SECONDS = 5e-4
_WARMUPS = 3

Function = Callable[[], object]
# Takes how many rounds are done, and how many there will be.
Report = Callable[[int, int], object]


@dataclass(frozen=True)
class Samples:
    """Seconds per call of one function, one entry a round; entries of the same round belong together."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return (high - low) / self.median

    def times_faster_than(self, other: "Samples") -> float:
        """Median over the rounds of the other's time over ours: a paired comparison."""
        return self.faster_quartiles(other)[1]

    def faster_quartiles(self, other: "Samples") -> tuple[float, float, float]:
        """Quartiles over the rounds of the other's time over ours."""
        ratios = [b / a for a, b in zip(self.seconds, other.seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, middle, high


def _calls_per_sample(function: Function) -> tuple[int, float]:
    """How many calls fill a sample, and what one takes, after a warm-up."""
    for _ in range(_WARMUPS):
        function()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    return max(1, math.ceil(_SAMPLE_SECONDS / seconds)), seconds


def _sample(function: Function, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collects before and not during, as timeit does."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_turns(
    names: Mapping[str, object], clock: Callable[[str], float], rounds: int, report: Report | None = None
) -> dict[str, Samples]:
    """Reads `clock` for every name once a round, in a new random order each round."""
    order, shuffle = list(names), random.Random(0)
    found: dict[str, list[float]] = {name: [] for name in names}
    with no_garbage_collection():
        for done in range(rounds):
            shuffle.shuffle(order)
            for name in order:
                found[name].append(clock(name))
            if report is not None:
                report(done + 1, rounds)
    return {name: Samples(seconds) for name, seconds in found.items()}


def interleave(
    functions: Mapping[str, Function],
    budget: float,
    min_rounds: int = 7,
    max_rounds: int = 101,
    report: Report | None = None,
) -> dict[str, Samples]:
    """Times every function once a round.

    Args:
        functions: what to time, by name.
        budget: seconds all rounds together should take.
        min_rounds: rounds to do even when that takes longer.
        max_rounds: rounds that are enough however short they are.
        report: called after each round.

    Returns:
        The samples of each function, by name.
    """
    calls, round_seconds = {}, 0.0
    for name, function in functions.items():
        calls[name], seconds = _calls_per_sample(function)
        round_seconds += calls[name] * seconds
    rounds = min(max_rounds, max(min_rounds, int(budget / round_seconds)))
    return in_turns(functions, lambda name: _sample(functions[name], calls[name]), rounds, report)
