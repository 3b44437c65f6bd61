"""The whole optimizer phase on a GPU, every recipe on every shape list: `make bench-gpu`.

Each recipe is timed three ways: the GPU's own time between two events with nothing of the arrays left in its L2 cache,
the same for a replay of the step captured in a CUDA graph, and the time of a call when calls follow each other without
a pause, which for many small tensors is the host's. All recipes of a case take turns, in random order.
"""

import argparse
import gc
import json
import math
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from .baselines import Recipe, Step, make_grads, make_params, recipes_for
from .libraries import find_libraries
from .models import MODELS, shapes
from .tables import duration, markdown

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.json"
CASES = [*MODELS, "10x64", "161x64", "1000x64", "10000x64"]
NO_GPU = "make bench-gpu needs a GPU: torch.cuda.is_available() is False here"

Row = dict[str, object]


class Gpu:
    """Clocks of the current device."""

    WARMUPS = 3
    READS = 5
    BACK_TO_BACK = 20

    def __init__(self) -> None:
        self.properties = torch.cuda.get_device_properties()
        # Four times the cache, read and not written: what is dirty in the cache is then written back before the clock
        # starts, and nothing of ours is.
        self._other = torch.zeros(self.properties.L2_cache_size, dtype=torch.float32, device="cuda")

    def own_time(self, step: Step) -> float:
        """Seconds from the GPU's start on one call to its end, from a cold L2 cache.

        The host is ahead by the time the GPU reads for. Where its work for a call takes longer, as for thousands of
        tensors it does with some recipes, the GPU's waits for it are in the figure.
        """
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self.READS):
            self._other.sum()
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def back_to_back(self, step: Step) -> float:
        """Seconds a call takes when the next one follows at once, the host's work included."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(self.BACK_TO_BACK):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / self.BACK_TO_BACK

    def copy_bandwidth(self) -> float:
        """Bytes a second that a copy of a large array reads and writes: what the device can do."""
        source = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        samples = [self.own_time(lambda: target.copy_(source)) for _ in range(20)]
        return 2 * source.numel() / statistics.median(samples)


def warm(step: Step) -> Step:
    """The step, after the calls in which it makes its state, compiles and allocates."""
    for _ in range(Gpu.WARMUPS):
        step()
    torch.cuda.synchronize()
    return step


def captured(step: Step) -> Step:
    """A replay of the step as a CUDA graph; raises RuntimeError for one that waits for the GPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        warm(step)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return warm(graph.replay)


def in_turns(clock: Callable[[Step], float], steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """The median of each step's samples; every step once a round, in a new order each round."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order, shuffle = list(steps), random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for name in order:
            samples[name].append(clock(steps[name]))
    return {name: statistics.median(times) for name, times in samples.items()}


def build_all(
    recipes: Iterable[Recipe], shape_list: list, grads: list[Tensor], finish: Callable[[Step], Step], **how: bool
) -> tuple[dict[str, Step], dict[str, str]]:
    """The steps that can be had, and the first line of why the others cannot, by recipe."""
    steps, failed = {}, {}
    for recipe in recipes:
        try:
            steps[recipe.name] = finish(recipe.build(make_params(shape_list, grads), **how))
        except Exception as error:  # one recipe that a device or a version cannot do must not end the run
            failed[recipe.name] = (str(error).splitlines() or [type(error).__name__])[0]
    return steps, failed


def measure(case: str, gpu: Gpu, recipes: list[Recipe], rounds: int) -> list[Row]:
    """One row a recipe; its arrays are freed before the next case."""
    shape_list = shapes(case)
    grads = [grad.cuda() for grad in make_grads(shape_list)]
    eager, failed = build_all(recipes, shape_list, grads, warm)
    own, calls = in_turns(gpu.own_time, eager, rounds), in_turns(gpu.back_to_back, eager, max(5, rounds // 10))
    del eager
    gc.collect()
    replays, uncaptured = build_all(recipes, shape_list, grads, captured, capturable=True)
    replayed = in_turns(gpu.own_time, replays, rounds)
    params = sum(map(math.prod, shape_list))
    return [
        {
            "case": case,
            "recipe": recipe.name,
            "versus": recipe.versus,
            "params": params,
            "tensors": len(shape_list),
            "bytes_per_param": recipe.bytes_per_param,
            "gpu_seconds": own.get(recipe.name),
            "replay_seconds": replayed.get(recipe.name),
            "call_seconds": calls.get(recipe.name),
            "failed": failed.get(recipe.name),
            "uncaptured": uncaptured.get(recipe.name),
        }
        for recipe in recipes
    ]


def table(rows: list[Row], copy_bandwidth: float) -> str:
    """One case as Markdown; what failed, and why, is listed below."""
    own = {row["recipe"]: row for row in rows}
    header = ["recipe", "GPU time", "graph replay", "back to back", "gradops is faster by", "of a copy's GB/s"]
    body, notes = [], []
    for row in rows:
        seconds, ours = row["gpu_seconds"], own.get(row["versus"], {}).get("gpu_seconds")
        moved = row["bytes_per_param"] * row["params"] if row["bytes_per_param"] else None
        times = (duration(row[key]) if row[key] else "-" for key in ("gpu_seconds", "replay_seconds", "call_seconds"))
        speedup = f"{seconds / ours:.2f}x" if seconds and ours else ""
        share = f"{moved / seconds / copy_bandwidth:.2f}" if seconds and moved else ""
        body.append([row["recipe"], *times, speedup, share])
        notes += [f"{row['recipe']}: {why}" for why in (row["failed"], row["uncaptured"]) if why]
    title = f"**{rows[0]['case']}**, {rows[0]['params']:,} parameters in {rows[0]['tensors']} tensors"
    return "\n\n".join([title, markdown(header, body), *notes])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, help="shape lists of models.py, or NxM tensors x elements")
    parser.add_argument("--rounds", type=int, default=100, help="samples of each recipe (100)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(NO_GPU)
    warnings.filterwarnings("ignore", message=".*lr.*")  # a float lr is baked into a graph, which changes no time
    gpu, (libraries, absent) = Gpu(), find_libraries()
    copy_bandwidth = gpu.copy_bandwidth()
    device = f"{gpu.properties.name}, {gpu.properties.multi_processor_count} multiprocessors"
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda}, copy {copy_bandwidth / 1e9:,.0f} GB/s")
    print(*(f"{name}: not measured, {why}" for name, why in absent.items()), sep="\n")
    rows: list[Row] = []
    args.results.parent.mkdir(exist_ok=True)
    for case in args.cases:
        found = measure(case, gpu, [*recipes_for(case), *libraries], args.rounds)
        rows += found
        print(f"\n{table(found, copy_bandwidth)}", flush=True)
        document = {"device": device, "torch": torch.__version__, "copy_bytes_per_second": copy_bandwidth, "rows": rows}
        args.results.write_text(json.dumps(document, indent=1))
    print(f"\nwritten to {args.results}")


if __name__ == "__main__":
    main()
