"""The whole optimizer phase, every recipe on every shape list: `make bench`.

All recipes of a case are timed in turns within one process (interleave.py); pytest-benchmark is then shown the samples,
recipe by recipe, for its tables and its JSON.
"""

import functools
from collections import deque

import pytest

from gradops.bench.measure import Plan, measure
from gradops.bench.models import MODELS
from gradops.bench.recipes import recipes_for
from gradops.bench.rows import Row
from gradops.bench.stream import STREAMS

CASES = [*MODELS, "10x64", "161x64", "1000x64", "10000x64"]

_readings: deque[float] = deque()


def replayed_clock() -> float:
    """The clock given to pytest-benchmark: between two readings it advances by a recorded sample."""
    return _readings.popleft()


@functools.cache
def rows(case: str, seconds: float) -> dict[str, Row]:
    """Every recipe and the streams on one case, by name; the arrays are freed before the next one."""
    return {row.recipe: row for row in measure(case, Plan(seconds=seconds), recipes_for(case))}


def names(case: str) -> list[str]:
    """Everything that is timed on a case."""
    return [*(recipe.name for recipe in recipes_for(case)), *(STREAMS if case in MODELS else [])]


@pytest.mark.benchmark(timer=replayed_clock)
@pytest.mark.parametrize(("case", "recipe"), [(case, recipe) for case in CASES for recipe in names(case)])
def bench_step(benchmark, pytestconfig, case, recipe):
    row = rows(case, pytestconfig.getoption("--case-seconds"))[recipe]
    assert row.failed is None, row.failed
    benchmark.group = case
    benchmark.extra_info.update(row.figures())
    for sample in row.samples:
        _readings.extend((0.0, sample))
    benchmark.pedantic(lambda: None, rounds=len(row.samples))
