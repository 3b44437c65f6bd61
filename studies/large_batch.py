"""Large batches: SGD, LARC-bounded SGD, LARS and AdamW as the batch grows, trained by examples/train_large_batch.py.

    python -m studies.large_batch [--seeds N]    # runs what has not been run yet
    python -m studies.large_batch --table        # writes the tables of docs/large-batch.md

First come the grids of rates at the smallest and the largest batch; the rest is run at the best of them. Each finished
run appends one JSON line, so a study can be stopped at any time and goes on where it was.
"""

import argparse
import math
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

import gradops
from examples.train_large_batch import BASE_BATCH, scaled, train
from studies.grids import ROOT
from studies.sweep import append, read_results, write_between

RESULTS = ROOT / "studies" / "large_batch.jsonl"
PAGE = ROOT / "docs" / "large-batch.md"
COMMAND = "python -m studies.large_batch --table"
EPOCHS = 16
LARGEST = 2048
BATCHES = (256, 1024, LARGEST)
RULES = ("sqrt", "linear")
GRID_SEEDS = SIDE_SEEDS = 3
GRID = {
    "SGD": (0.01, 0.03, 0.1, 0.3, 1.0),
    "LARC": (0.01, 0.03, 0.1, 0.3, 1.0),
    "LARS": (0.03, 0.1, 0.3, 1.0, 3.0),
    "AdamW": (0.0003, 0.001, 0.003, 0.01, 0.03),
}
# The grid at the largest batch reaches higher: half of the way to the linear rule's factor of 32, and a rate beyond.
LARGEST_GRID = {
    "SGD": (0.03, 0.1, 0.3, 1.0, 3.0),
    "LARC": (0.03, 0.1, 0.3, 1.0, 3.0),
    "LARS": (0.3, 1.0, 3.0, 10.0, 30.0),
    "AdamW": (0.003, 0.01, 0.03, 0.1, 0.3),
}


@dataclass(frozen=True)
class Job:
    """One run."""

    optimizer: str
    batch_size: int
    lr: float
    seed: int = 0
    accumulate: int = 1
    precision: str = "fp32"
    epochs: int = EPOCHS


SIDES = {"bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"}, "8 parts": {"accumulate": 8}}


def grid_jobs() -> Iterator[Job]:
    """Every rate of both grids, seed by seed."""
    for seed in range(GRID_SEEDS):
        for batch_size, grid in ((BASE_BATCH, GRID), (LARGEST, LARGEST_GRID)):
            for optimizer, rates in grid.items():
                yield from (Job(optimizer, batch_size, lr, seed) for lr in rates)


def best_rate(results: list[dict], optimizer: str, batch_size: int) -> float:
    """The grid's rate with the highest mean accuracy over the grid's seeds; of equal ones the lowest.

    Raises:
        ValueError: the grid has not been run.
    """
    rates = {BASE_BATCH: GRID, LARGEST: LARGEST_GRID}[batch_size][optimizer]
    means = {}
    for lr in rates:
        found = results_of(results, Job(optimizer, batch_size, lr), range(GRID_SEEDS))
        if len(found) < GRID_SEEDS:
            raise ValueError(
                f"{optimizer} at batch {batch_size} and rate {lr:g} has {len(found)} of {GRID_SEEDS} seeds"
            )
        means[lr] = statistics.mean(result["accuracy"] for result in found)
    return max(rates, key=lambda lr: means[lr])


def rule_job(results: list[dict], optimizer: str, batch_size: int, rule: str) -> Job:
    """The run whose rate is the best one at the smallest batch, scaled."""
    return Job(optimizer, batch_size, _round(scaled(best_rate(results, optimizer, BASE_BATCH), batch_size, rule)))


def later_jobs(results: list[dict], seeds: int) -> Iterator[Job]:
    """What follows the grids, seed by seed."""
    for seed in range(seeds):
        for optimizer in GRID:
            yield Job(optimizer, BASE_BATCH, best_rate(results, optimizer, BASE_BATCH), seed)
            tuned = Job(optimizer, LARGEST, best_rate(results, optimizer, LARGEST), seed)
            yield tuned
            for batch_size in BATCHES:
                yield from (replace(rule_job(results, optimizer, batch_size, rule), seed=seed) for rule in RULES)
            if seed < SIDE_SEEDS:
                yield from (replace(tuned, **side) for side in SIDES.values())


def run(job: Job) -> dict[str, object]:
    """Trains once, on one thread. Returns its JSON line; what is not finite is None there."""
    torch.set_num_threads(1)
    arguments = vars(job)
    result = train(name=arguments["optimizer"], **{key: arguments[key] for key in arguments if key != "optimizer"})
    short = {key: _round(value, 4) if math.isfinite(value) else None for key, value in result.items()}
    return {**arguments, **short, "torch": torch.__version__, "gradops": gradops.__version__}


def job_of(result: dict) -> Job:
    return Job(**{name: result[name] for name in Job.__dataclass_fields__})


def sweep(todo: Iterable[Job], path: pathlib.Path) -> None:
    """Runs the jobs that `path` does not hold yet and appends each as it ends."""
    done = {job_of(result) for result in read_results(path)}
    for job in todo:
        if job not in done:
            append(path, run(job))
            done.add(job)


def _round(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")


def results_of(results: list[dict], job: Job, seeds: Iterable[int] | None = None) -> list[dict]:
    """The results of a job with any seed, or with these."""
    alike = [result for result in results if replace(job_of(result), seed=job.seed) == job]
    return [result for result in alike if seeds is None or result["seed"] in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only write the tables of the page")
    args = parser.parse_args()
    if args.table:
        from studies.large_batch_table import tables

        write_between(PAGE, COMMAND, tables(read_results(args.results)))
        return
    sweep(grid_jobs(), args.results)
    sweep(later_jobs(read_results(args.results), args.seeds), args.results)


if __name__ == "__main__":
    main()
