"""Sweeps remedies over learning rates, networks and seeds, on the demo's digits.

    python -m studies.sweep [cap|spikes|sgd] [--jobs N] [--seeds N]    # runs what has not been run yet
    python -m studies.sweep [cap|spikes|sgd] --table                   # writes the table of the study's page

studies/grids.py says what each study runs. Each finished run appends one JSON line, so a sweep can be stopped at
any time and goes on where it was.
"""

import argparse
import json
import math
import multiprocessing
import pathlib
import statistics
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace

import torch

import gradops
from gradops.demo.recipes import GradopsRecipe
from gradops.demo.training import Run, train
from studies.grids import CAP, NETWORKS, OPTIMIZERS, STUDIES, Cell, Remedy, Study
from studies.tasks import spoil, task_for

REMEDIES = {name: remedy for study in STUDIES.values() for name, remedy in study.remedies.items()}


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    remedy: str
    network: str
    lr: float
    seed: int
    steps: int = CAP.steps
    bad_batches: int = 0
    batch_size: int = CAP.batch_size
    optimizer: str = CAP.optimizer


def jobs(study: Study, seeds: int) -> Iterator[Job]:
    """All runs, seed by seed, so that every cell has about as many seeds whenever the sweep is stopped."""
    shared = {"steps": study.steps, "batch_size": study.batch_size, "optimizer": study.optimizer}
    first = [remedy for remedy in study.remedies if remedy not in study.later_remedies]
    for remedies in (first, study.later_remedies):
        for seed in range(seeds):
            for cell in study.cells:
                for remedy in remedies:
                    yield Job(remedy, cell.network, cell.lr, seed, bad_batches=cell.bad_batches, **shared)


class StudyRecipe(GradopsRecipe):
    """The demo's recipe with a study's optimizer and remedy."""

    def __init__(self, optimizer: str, remedy: Remedy, network: torch.nn.Module, lr: float) -> None:
        self.optimizer = gradops.wrap(OPTIMIZERS[optimizer](network.named_parameters(), lr=lr), **remedy.settings)
        if remedy.hook is not None:
            self.optimizer.register_step_pre_hook(remedy.hook())


def run(job: Job, train_canvases: int = 6000, held_out_canvases: int = 1000) -> dict[str, object]:
    """Trains one network on one thread. Returns its JSON line; what is not finite is None there."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    network = NETWORKS[job.network]()
    task = task_for(network, job.seed, train_canvases, held_out_canvases)
    task = spoil(replace(task, steps=job.steps, lr=job.lr, batch_size=job.batch_size), job.bad_batches)
    recipe = StudyRecipe(job.optimizer, REMEDIES[job.remedy], network, job.lr)
    result = Run(job.remedy, units=network.head.out_features)
    guarded = 0.0

    def count(_: Run) -> None:
        nonlocal guarded
        guarded += float(recipe.optimizer.stats.guarded)

    train(task, result, network, recipe, report=count)
    numbers = {"loss": result.final_loss, "accuracy": result.accuracy, "largest_norm": result.largest_norm}
    return {
        **vars(job),
        **{name: float(f"{value:.4g}") if math.isfinite(value) else None for name, value in numbers.items()},
        "first_spike": result.first_spike,
        "dead_units": result.steps[-1].dead_units,
        "skipped": result.skipped,
        "guarded": int(guarded),
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
    return Job(**{name: result[name] for name in Job.__dataclass_fields__ if name in result})


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


def table(study: Study, results: list[dict[str, object]]) -> str:
    """A Markdown table per network: mean loss, number of seeds, and the loss of each seed in their order."""
    lines = []
    for network in dict.fromkeys(cell.network for cell in study.cells):
        columns = sorted((cell for cell in study.cells if cell.network == network), key=lambda c: (c.bad_batches, c.lr))
        lines += [f"**{network}**", "", "| remedy | " + " | ".join(cell.heading for cell in columns) + " |"]
        lines.append("|---" * (len(columns) + 1) + "|")
        for remedy in study.remedies:
            cells = [_cell(results, remedy, cell) for cell in columns]
            if any(cells):
                lines.append(f"| {remedy} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(results: list[dict[str, object]], remedy: str, cell: Cell) -> str:
    chosen = [r for r in results if (job := job_of(r)).remedy == remedy and cell == _cell_of(job)]
    chosen.sort(key=lambda r: r["seed"])
    if not chosen:
        return ""
    losses = [math.inf if r["loss"] is None else r["loss"] for r in chosen]
    each = " ".join(_short(loss).removeprefix("0") for loss in losses)
    guarded = statistics.mean(r.get("guarded", 0) for r in chosen)
    note = f", {guarded:.3g} guarded" if guarded else ""
    return f"**{_short(statistics.mean(losses))}** (n={len(losses)}{note})<br>{each}"


def _cell_of(job: Job) -> Cell:
    return Cell(job.network, job.lr, job.bad_batches)


def _short(loss: float) -> str:
    return f"{loss:.3f}" if loss < 100 else f"{loss:.3g}"


def begin_mark(command: str) -> str:
    return f"<!-- table: {command} -->"


END = "<!-- end of table -->"


def command(study: Study) -> str:
    return f"python -m studies.sweep {study.name} --table"


def write_table(study: Study, results: list[dict[str, object]], page: pathlib.Path) -> None:
    """Replaces the study's table in `page`."""
    write_between(page, command(study), table(study, results))


def write_between(page: pathlib.Path, command: str, text: str) -> None:
    """Replaces what stands between the two marks of a page's table, by the command that makes it."""
    begin = begin_mark(command)
    before, rest = page.read_text().split(begin)
    after = rest.split(END, 1)[1]
    page.write_text(f"{before}{begin}\n\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=STUDIES, default="cap")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--results", type=pathlib.Path, help="another file than the study's")
    parser.add_argument("--table", action="store_true", help="only write the table of the study's page")
    args = parser.parse_args()
    study = STUDIES[args.study]
    results = args.results or study.results
    if args.table:
        write_table(study, read_results(results), study.page)
    else:
        sweep(jobs(study, args.seeds), results, args.jobs)


if __name__ == "__main__":
    main()
