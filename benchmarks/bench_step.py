"""The whole optimizer phase, every recipe on every shape list: `make bench`.

All recipes of a case are timed in turns within one process (interleave.py); pytest-benchmark is then shown the samples,
recipe by recipe, for its tables and its JSON.
"""

import functools
import math
from collections import deque

import pytest

from .baselines import make_grads, make_params, recipes_for
from .interleave import Samples, interleave
from .models import MODELS, shapes
from .stream import BYTES_PER_PARAM, ORDERS, make_streams

CASES = [*MODELS, "10x64", "161x64", "1000x64", "10000x64"]
STREAMS = [f"stream {order}" for order in ORDERS]

_readings: deque[float] = deque()


def replayed_clock() -> float:
    """The clock given to pytest-benchmark: between two readings it advances by a recorded sample."""
    return _readings.popleft()


@functools.cache
def measure(case: str, seconds: float) -> dict[str, Samples]:
    """Samples of every recipe and of the streams on one case, whose arrays are freed before the next one."""
    shape_list = shapes(case)
    grads = make_grads(shape_list)
    functions = {recipe.name: recipe.build(make_params(shape_list, grads)) for recipe in recipes_for(case)}
    if case in MODELS:
        functions |= make_streams(sum(map(math.prod, shape_list)))
    return interleave(functions, seconds)


def describe(case: str, name: str, samples: dict[str, Samples]) -> dict[str, object]:
    """What the tables need to know of a recipe on a case beyond its times."""
    shape_list = shapes(case)
    params = sum(map(math.prod, shape_list))
    recipe = next((recipe for recipe in recipes_for(case) if recipe.name == name), None)
    moved = BYTES_PER_PARAM if recipe is None else recipe.bytes_per_param
    own = samples[name]
    bandwidth = moved * params / own.median if moved else None
    streams = [BYTES_PER_PARAM * params / samples[order].median for order in STREAMS if order in samples]
    versus = recipe.versus if recipe else None
    return {
        "case": case,
        "recipe": name,
        "params": params,
        "tensors": len(shape_list),
        "seconds": own.median,
        "spread": own.spread,
        "rounds": len(own.seconds),
        "bytes_per_param": moved,
        "bytes_per_second": bandwidth,
        "share_of_stream": bandwidth / max(streams) if bandwidth and streams else None,
        "versus": versus,
        "gradops_speedup": samples[versus].times_faster_than(own) if versus else None,
    }


def rows(case: str) -> list[str]:
    """Everything that is timed on a case; bandwidth means nothing where every array fits into the caches."""
    return [*(recipe.name for recipe in recipes_for(case)), *(STREAMS if case in MODELS else [])]


@pytest.mark.benchmark(timer=replayed_clock)
@pytest.mark.parametrize(("case", "recipe"), [(case, recipe) for case in CASES for recipe in rows(case)])
def bench_step(benchmark, pytestconfig, case, recipe):
    samples = measure(case, pytestconfig.getoption("--case-seconds"))
    benchmark.group = case
    benchmark.extra_info.update(describe(case, recipe, samples))
    for sample in samples[recipe].seconds:
        _readings.extend((0.0, sample))
    benchmark.pedantic(lambda: None, rounds=len(samples[recipe].seconds))
