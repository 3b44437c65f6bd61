"""The tables of docs/large-batch.md, from the runs of studies/large_batch.py."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import replace

from examples.train_large_batch import BASE_BATCH
from studies.large_batch import (
    BATCHES,
    GRID,
    GRID_SEEDS,
    LARGEST,
    LARGEST_GRID,
    RULES,
    SIDES,
    Job,
    best_rate,
    results_of,
    rule_job,
)

Results = list[dict]


def tables(results: Results) -> str:
    """All tables, in Markdown."""
    tuned = {name: Job(name, LARGEST, best_rate(results, name, LARGEST)) for name in GRID}
    parts = [_grid(results, BASE_BATCH, GRID), _grid(results, LARGEST, LARGEST_GRID)]
    parts += [_by_batch(results, rule, tuned) for rule in RULES]
    parts.append(_sides(results, tuned))
    return "\n\n".join(parts) + "\n"


def _grid(results: Results, batch_size: int, grid: dict[str, tuple[float, ...]]) -> str:
    rows = []
    for name, rates in grid.items():
        best = best_rate(results, name, batch_size)
        cells = []
        for lr in rates:
            accuracy = f"{_accuracy(results, Job(name, batch_size, lr), range(GRID_SEEDS)):.1%}"
            cells.append(f"{lr:g}: " + (f"**{accuracy}**" if lr == best else accuracy))
        rows.append([name, *cells])
    title = f"**Rates at batch {batch_size:,}**: accuracy, mean of {GRID_SEEDS} seeds, the best in bold"
    return _table(title, ["", *["rate: accuracy"] * len(next(iter(grid.values())))], rows)


def _by_batch(results: Results, rule: str, tuned: dict[str, Job]) -> str:
    rows = []
    for name in GRID:
        base = Job(name, BASE_BATCH, best_rate(results, name, BASE_BATCH))
        jobs = [base, *(rule_job(results, name, batch_size, rule) for batch_size in BATCHES), tuned[name]]
        rows.append([name, *(_cell(results, job) for job in jobs)])
    growth = {"sqrt": "grows with the square root of the batch", "linear": "grows in proportion to the batch"}[rule]
    sizes = [f"batch {size:,}" for size in (BASE_BATCH, *BATCHES)]
    return _table(f"**The rate {growth}**", ["", *sizes, f"{LARGEST:,}, at its own best rate"], rows)


def _sides(results: Results, tuned: dict[str, Job]) -> str:
    rows = []
    for name, job in tuned.items():
        seeds = {result["seed"] for result in results_of(results, replace(job, **SIDES["fp16"]))}
        variants = [job, *(replace(job, **side) for side in SIDES.values())]
        rows.append([f"{name}, {job.lr:g}", *(_cell(results, variant, seeds) for variant in variants)])
    title = f"**Precision and accumulation**, at batch {LARGEST:,} and the best rate there"
    return _table(title, ["", "float32", *SIDES], rows)


def _table(title: str, heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)])


def _cell(results: Results, job: Job, seeds: Iterable[int] | None = None) -> str:
    """Mean accuracy, the number of seeds, the worst of them, the mean training loss, and the rate."""
    found = results_of(results, job, seeds)
    if not found:
        return ""
    losses = [math.inf if result["loss"] is None else result["loss"] for result in found]
    worst = min(result["accuracy"] for result in found)
    skipped = sum(result["skipped"] for result in found)
    note = f", {skipped:g} skipped" if skipped else ""
    mean = statistics.mean(result["accuracy"] for result in found)
    loss = statistics.mean(losses)
    shown = f"{loss:.3f}" if loss < 100 else f"{loss:.2g}"
    return f"**{mean:.1%}** (n={len(found)}), {worst:.1%}<br>lr {job.lr:g}, loss {shown}{note}"


def _accuracy(results: Results, job: Job, seeds: Iterable[int]) -> float:
    found = results_of(results, job, seeds)
    return statistics.mean(result["accuracy"] for result in found) if found else math.nan
