"""Sweeps rules for `max_relative_step` over learning rates, networks and seeds, on the demo's canvases.

    python benchmarks/sweep.py [--jobs N] [--seeds N]    # runs what is not in sweep.jsonl yet
    python benchmarks/sweep.py --table                   # writes the table of docs/relative-step.md

Each finished run appends one JSON line, so a sweep can be stopped at any time and goes on where it was. Only the cap
differs between the rules: none of them clips, save the one that does nothing else.
"""

import argparse
import json
import math
import multiprocessing
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

import torch

import gradops
from gradops import RelativeStepCap
from gradops.demo import make_task
from gradops.demo.network import ResidualNet
from gradops.demo.recipes import GradopsRecipe
from gradops.demo.training import Run, train

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "sweep.jsonl"
PAGE = ROOT / "docs" / "relative-step.md"
BEGIN, END = "<!-- table: python benchmarks/sweep.py --table -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Rule:
    """What is added to AdamW."""

    max_relative_step: RelativeStepCap | None = None
    max_norm: float | None = None


RULES = {
    "AdamW": Rule(),
    "cap 0.05": Rule(RelativeStepCap(0.05)),
    "cap 0.1, warm-up 50": Rule(RelativeStepCap(0.1, warmup_steps=50)),
    "cap 0.1, warm-up 100": Rule(RelativeStepCap(0.1, warmup_steps=100)),
    "cap 0.05, floor 0.03": Rule(RelativeStepCap(0.05, floor=0.03)),
    "clip 0.3": Rule(max_norm=0.3),
}
NETWORKS = {
    "12 blocks, not normalised": {"blocks": 12, "normalise": False},
    "6 blocks, BatchNorm": {"blocks": 6, "normalise": True},
}
PLAIN, NORMALISED = NETWORKS
LATER_RULES = ("cap 0.05, floor 0.03", "clip 0.3")
# In the order of the runs: what tells most comes first.
CELLS = (
    (PLAIN, 0.01),
    (PLAIN, 0.3),
    (NORMALISED, 0.01),
    (PLAIN, 0.1),
    (PLAIN, 1.0),
    (NORMALISED, 0.03),
    (NORMALISED, 0.003),
    (NORMALISED, 0.1),
)


@dataclass(frozen=True)
class Job:
    """One run of the sweep."""

    rule: str
    network: str
    lr: float
    seed: int
    steps: int = 320


def jobs(seeds: int, steps: int) -> Iterator[Job]:
    """All runs, seed by seed, so that every cell has about as many seeds whenever the sweep is stopped."""
    first = [rule for rule in RULES if rule not in LATER_RULES]
    for rules in (first, LATER_RULES):
        for seed in range(seeds):
            for network, lr in CELLS:
                for rule in rules:
                    yield Job(rule, network, lr, seed, steps)


def run(job: Job, train_canvases: int = 6000, held_out_canvases: int = 1000) -> dict[str, object]:
    """Trains one network on one thread. Returns its JSON line; what is not finite is None there."""
    torch.set_num_threads(1)
    task = make_task(job.seed, job.steps, job.lr, "fp32", train_canvases, held_out_canvases)
    torch.manual_seed(job.seed)
    network = ResidualNet(**NETWORKS[job.network])
    rule = RULES[job.rule]
    recipe = GradopsRecipe(network, job.lr, False, rule.max_norm, rule.max_relative_step)
    result = Run(job.rule, units=network.head.out_features)
    train(task, result, network, recipe, report=lambda _: None)
    numbers = {"loss": result.final_loss, "accuracy": result.accuracy, "largest_norm": result.largest_norm}
    return {
        **vars(job),
        **{name: float(f"{value:.4g}") if math.isfinite(value) else None for name, value in numbers.items()},
        "first_spike": result.first_spike,
        "dead_units": result.steps[-1].dead_units,
        "skipped": result.skipped,
        "torch": torch.__version__,
        "gradops": gradops.__version__,
    }


def read_results(path: pathlib.Path) -> list[dict[str, object]]:
    """The finished runs; a line that was cut off when the machine stopped counts as not run."""
    results = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results


def job_of(result: dict[str, object]) -> Job:
    return Job(*(result[name] for name in Job.__dataclass_fields__))


def append(path: pathlib.Path, result: dict[str, object]) -> None:
    """Appends one line, on a line of its own even after one that was cut off."""
    torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write("\n" * torn + json.dumps(result) + "\n")


def sweep(todo: Iterable[Job], path: pathlib.Path, workers: int) -> None:
    """Runs the jobs that `path` does not hold yet and appends each as it ends."""
    done = {job_of(result) for result in read_results(path)}
    missing = [job for job in todo if job not in done]
    if workers == 1:
        finished: Iterable[dict[str, object]] = map(run, missing)
        for result in finished:
            append(path, result)
        return
    # Forked, so that the workers keep this command line, by which people stop and continue a sweep.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for future in as_completed([pool.submit(run, job) for job in missing]):
            append(path, future.result())


def table(results: list[dict[str, object]]) -> str:
    """A Markdown table per network: mean loss, number of seeds, and the loss of each seed in their order."""
    lines = []
    for network in NETWORKS:
        rates = sorted({lr for cell, lr in CELLS if cell == network})
        lines += [f"**{network}**", "", "| rule | " + " | ".join(f"lr {lr:g}" for lr in rates) + " |"]
        lines.append("|---" * (len(rates) + 1) + "|")
        for rule in RULES:
            cells = [_cell(results, rule, network, lr) for lr in rates]
            if any(cells):
                lines.append(f"| {rule} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(results: list[dict[str, object]], rule: str, network: str, lr: float) -> str:
    chosen = [r for r in results if (r["rule"], r["network"], r["lr"]) == (rule, network, lr)]
    chosen.sort(key=lambda r: r["seed"])
    if not chosen:
        return ""
    losses = [math.inf if r["loss"] is None else r["loss"] for r in chosen]
    each = " ".join(_short(loss).removeprefix("0") for loss in losses)
    return f"**{_short(statistics.mean(losses))}** (n={len(losses)})<br>{each}"


def _short(loss: float) -> str:
    return f"{loss:.3f}" if loss < 100 else f"{loss:.0e}"


def write_table(results: list[dict[str, object]], page: pathlib.Path) -> None:
    """Replaces what stands between the two marks of `page`."""
    before, rest = page.read_text().split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{table(results)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help=f"only write the table of {PAGE.relative_to(ROOT)}")
    args = parser.parse_args()
    if args.table:
        write_table(read_results(args.results), PAGE)
    else:
        sweep(jobs(args.seeds, args.steps), args.results, args.jobs)


if __name__ == "__main__":
    main()
