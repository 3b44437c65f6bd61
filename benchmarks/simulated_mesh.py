"""`python -m benchmarks.simulated_mesh`: the host time, the payload and the memory of a step as one rank of many.

torch's fake process group stands for the other ranks: its collectives return at once, with whatever the memory holds.
The local tensors are small, so that what is timed is the work for each tensor. One rank has them whole.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

import gradops
from gradops.bench.machine import provenance, sentence
from gradops.distributed import gather

RANK, ELEMENTS, ROUNDS = 3, 64, 30


@contextmanager
def counted(received: list[int]) -> Iterator[None]:
    """Has the bytes that each collective of a step brings appended to the list."""
    gathers, reduces, objects = gather.all_gather, dist.all_reduce, gather.Gathering.gather_objects

    def all_gather(out: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        received.append(out.nbytes)
        return gathers(out, *args, **keywords)

    def all_reduce(numbers: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        received.append(numbers.nbytes)
        return reduces(numbers, *args, **keywords)

    gather.all_gather, dist.all_reduce = all_gather, all_reduce
    gather.Gathering.gather_objects = lambda self, value: [value] * len(self.ranks)  # type: ignore[method-assign]
    try:
        yield
    finally:
        gather.all_gather, dist.all_reduce, gather.Gathering.gather_objects = gathers, reduces, objects


def run(_: int, ranks: int, tensors: int, answers: Any) -> None:
    """Steps as rank 3 of so many, or alone; puts a row into `answers`."""
    torch.set_num_threads(1)
    mesh, received = None, []
    if ranks > 1:
        dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=ranks)
        mesh = init_device_mesh("cpu", (ranks,))

    def shard(local: torch.Tensor) -> torch.Tensor:
        return local if mesh is None else DTensor.from_local(local, mesh, [Shard(0)])

    def params_of(count: int, spread: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.nn.Parameter]:
        params = [torch.nn.Parameter(spread(torch.ones(ELEMENTS))) for _ in range(count)]
        for param in params:
            param.grad = spread(torch.zeros(ELEMENTS))
        return params

    gradops.AdamW(params_of(1, lambda local: local), max_norm=1.0).step()  # imports what a first step needs
    params = params_of(tensors, shard)
    start = time.perf_counter()
    with counted(received):
        optimizer = gradops.AdamW(params, max_norm=1.0)
        optimizer.step()
    first = time.perf_counter() - start
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        optimizer.step()
    made = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    row = {"ranks": ranks, "tensors": tensors, "collectives": len(received), "bytes": sum(received), "made": made}
    answers.put({**row, "seconds": statistics.median(seconds), "first_seconds": first})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 1024, 16384])
    parser.add_argument("--tensors", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    context, rows = torch.multiprocessing.get_context("spawn"), []
    for tensors in args.tensors:
        for ranks in args.ranks:
            answers = context.SimpleQueue()
            torch.multiprocessing.start_processes(run, (ranks, tensors, answers), 1)
            rows.append(answers.get())
            print(rows[-1])
    head = {**provenance("cpu"), "command": " ".join(["python -m benchmarks.simulated_mesh", *sys.argv[1:]])}
    print(sentence(head))
    if args.json:
        args.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
