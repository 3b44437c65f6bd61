"""`python -m benchmarks.sharded`: a step of parameters sharded over gloo processes, beside what it consists of.

The unsharded step is of the same local tensors, and the collective gathers the same numbers; both are timed alone, and
one after the other, when the processes wait for each other and wake up as in a sharded step. Each is timed once after
the others, whose data fill the caches, and in a row, which is the steady state. On a machine with fewer cores than
processes these share them, as in everything here.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradops
from gradops.bench import models
from gradops.bench.interleave import Samples, in_turns
from gradops.bench.machine import provenance, sentence
from gradops.distributed.gather import all_gather

SHARDED, ALONE, COLLECTIVE = "gradops, sharded", "gradops, the local tensors alone", "the gathering alone"
BOTH = "the two one after the other"
# How many calls of one kind follow each other.
IN_A_ROW = {"after the others": 1, "in a row": 20}
FUSED, FOREACH = "torch fused + clip", "torch foreach + clip"


def steps_of(shapes: list[tuple[int, ...]], world: int) -> dict[str, object]:
    """What is timed, by name."""
    mesh = init_device_mesh("cpu", (world,))

    def sharded() -> list[Tensor]:
        params = [
            torch.nn.Parameter(distribute_tensor(torch.randn(shape) * 0.05, mesh, [Shard(0)])) for shape in shapes
        ]
        for param in params:
            param.grad = distribute_tensor(torch.randn(param.shape) * 1e-3, mesh, [Shard(0)])
        return params

    local = []
    for param in sharded():
        local.append(torch.nn.Parameter(param.to_local().detach().clone()))
        local[-1].grad = param.grad.to_local().clone()
    numbers = torch.zeros(3, len(shapes) + 1, dtype=torch.float64)
    every = torch.empty(world * numbers.numel(), dtype=torch.float64)

    def clipped(params: list[Tensor], **form: bool) -> object:
        optimizer = torch.optim.AdamW(params, lr=1e-5, **form)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()

        return step

    alone = gradops.AdamW(local, lr=1e-5, max_norm=1.0)

    def gather() -> None:
        all_gather(every, numbers.view(-1))

    def both() -> None:
        alone.step()
        gather()

    return {
        SHARDED: gradops.AdamW(sharded(), lr=1e-5, max_norm=1.0).step,
        ALONE: alone.step,
        COLLECTIVE: gather,
        BOTH: both,
        FUSED: clipped(sharded(), fused=True),
        FOREACH: clipped(sharded(), foreach=True),
    }


def run(rank: int, world: int, store: str, case: str, rounds: int, answers: object) -> None:
    """One process; the first puts the samples into `answers`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    torch.manual_seed(0)
    functions = steps_of(models.shapes(case), world)
    for function in functions.values():
        for _ in range(3):
            function()

    for when, calls in IN_A_ROW.items():

        def clock(name: str, calls: int = calls) -> float:
            dist.barrier()
            start = time.perf_counter()
            for _ in range(calls):
                functions[name]()
            return (time.perf_counter() - start) / calls

        found = in_turns(functions, clock, max(3, rounds // min(calls, 5)))
        if rank == 0:
            answers.put((when, {name: samples.seconds for name, samples in found.items()}))
    dist.destroy_process_group()


def measure(world: int, case: str, rounds: int) -> dict[str, dict[str, Samples]]:
    """Seconds of each on the first of `world` processes, by when they were taken."""
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (world, os.path.join(folder, "store"), case, rounds, answers)
        processes = torch.multiprocessing.start_processes(run, arguments, world, join=False)
        seconds = dict(answers.get() for _ in IN_A_ROW)
        processes.join()
    return {when: {name: Samples(values) for name, values in found.items()} for when, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--model", nargs="+", default=["resnet50", "161x64", "1000x64", "1000x4096"])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    head, rows = {**provenance("cpu"), "command": " ".join(["python -m benchmarks.sharded", *sys.argv[1:]])}, []
    table = Table(title=sentence(head), title_justify="left")
    for column in ("case", "ranks", "when", "what", "ms", "to sharded"):
        table.add_column(column, justify="right" if column in ("ranks", "ms", "to sharded") else "left")
    for case in args.model:
        for world in args.ranks:
            for when, found in measure(world, case, args.rounds).items():
                for name, samples in found.items():
                    seconds, ratio = samples.median, samples.median / found[SHARDED].median
                    rows.append({"case": case, "ranks": world, "when": when, "what": name, "seconds": seconds})
                    table.add_row(case, str(world), when, name, f"{1e3 * seconds:.3g}", f"{ratio:.2f}x")
                table.add_section()
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
