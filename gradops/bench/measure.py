"""Every recipe on one case: built, counted, and timed in turns."""

import gc
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.bench import gpu
from gradops.bench.costs import count_costs
from gradops.bench.interleave import Report, in_turns, interleave
from gradops.bench.models import Shape, shapes
from gradops.bench.recipes import Recipe, Step, make_grads, make_params
from gradops.bench.rows import DTYPES, Found, Row, rows_of
from gradops.bench.stream import has_compiler, make_streams

# Fewer parameters' arrays fit into caches, of which the bandwidth of memory says nothing.
STREAMED = 2_000_000


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        device: "cpu" or "cuda".
        dtype: of parameters and gradients; a key of `DTYPES`.
        seconds: time for the samples of one case on a CPU.
        rounds: samples of each recipe on a GPU.
        memory: bytes that arrays may take; recipes that do not fit together are timed in pairs with gradops.
    """

    device: str = "cpu"
    dtype: str = "float32"
    seconds: float = 15.0
    rounds: int = 100
    memory: float = math.inf


def build_all(
    recipes: Iterable[Recipe],
    shape_list: list[Shape],
    grads: list[Tensor],
    finish: Callable[[Recipe, Step, list[Tensor]], Step],
    **how: bool,
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that can be had, and the first line of why the others cannot, by recipe."""
    steps, failed = {}, {}
    for recipe in recipes:
        try:
            params = make_params(shape_list, grads)
            steps[recipe.name] = finish(recipe, recipe.build(params, **how), params)
        except Exception as error:  # one recipe that a device or a version cannot do must not end the run
            failed[recipe.name] = (str(error).splitlines() or [type(error).__name__])[0]
    return steps, failed


def free_memory(device: str) -> float:
    """Half of the bytes that nobody uses: temporaries, and other people, need some."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] / 2
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def groups_of(recipes: list[Recipe], params: int, element: int, memory: float) -> Iterator[list[Recipe]]:
    """All together where their arrays fit into the memory, else each with the gradops recipe it is compared with."""
    own = params * (element + 4 + 4)
    temporaries = params * (element + 2 * 4)
    if len(recipes) * own + temporaries <= memory:
        yield recipes
        return
    by_name = {recipe.name: recipe for recipe in recipes}
    for recipe in recipes:
        ours = by_name.get(recipe.versus or "")
        yield [recipe] if ours is None else [recipe, ours]


def measure(case: str, plan: Plan, recipes: list[Recipe], report: Report | None = None) -> list[Row]:
    """One row a recipe, and on a CPU one a stream; the arrays are freed before the next case."""
    shape_list = shapes(case)
    dtype, params = DTYPES[plan.dtype], sum(map(math.prod, shape_list))
    grads = [grad.to(device=plan.device, dtype=dtype) for grad in make_grads(shape_list)]
    found = Found()
    clock = gpu.Gpu() if plan.device == "cuda" else None
    groups = list(groups_of(recipes, params, dtype.itemsize, plan.memory))
    streams: dict[str, Step] = make_streams(params) if clock is None and params >= STREAMED and has_compiler() else {}
    for group in groups:
        if clock is None:
            _time_on_cpu(found, group, shape_list, grads, streams, plan.seconds / len(groups), report)
        else:
            _time_on_gpu(found, group, shape_list, grads, clock, plan.rounds, report)
        gc.collect()
    if clock is not None:
        found.bandwidth = clock.copy_bandwidth()
    return rows_of(case, shape_list, plan.dtype, recipes, list(streams), found)


def _time_on_cpu(
    found: Found,
    recipes: list[Recipe],
    shape_list: list[Shape],
    grads: list[Tensor],
    streams: dict[str, Step],
    seconds: float,
    report: Report | None,
) -> None:
    steps, failed = build_all(recipes, shape_list, grads, _counting(found))
    found.failed |= failed
    found.add(interleave({**steps, **streams}, seconds, report=report), recipes, streams)


def _time_on_gpu(
    found: Found,
    recipes: list[Recipe],
    shape_list: list[Shape],
    grads: list[Tensor],
    clock: gpu.Gpu,
    rounds: int,
    report: Report | None,
) -> None:
    count = _counting(found)
    steps, failed = build_all(recipes, shape_list, grads, lambda *built: gpu.warm(count(*built)))
    found.failed |= failed
    found.add(in_turns(steps, lambda name: clock.own_time(steps[name]), rounds, report), recipes)
    found.back_to_back |= in_turns(steps, lambda name: clock.back_to_back(steps[name]), max(5, rounds // 10))
    found.host |= in_turns(steps, lambda name: clock.host_time(steps[name]), max(5, rounds // 5))
    steps.clear()
    gc.collect()
    replays, uncaptured = build_all(recipes, shape_list, grads, lambda _, step, __: gpu.captured(step), capturable=True)
    found.uncaptured |= uncaptured
    found.replays |= in_turns(replays, lambda name: clock.own_time(replays[name]), rounds)


def _counting(found: Found) -> Callable[[Recipe, Step, list[Tensor]], Step]:
    """Hands a step on once it has been called, which makes its state, and its costs have been counted."""

    def count(recipe: Recipe, step: Step, params: list[Tensor]) -> Step:
        step()
        if recipe.hidden_bytes is not None:
            found.costs[recipe.name] = count_costs(step, params)
        return step

    return count
