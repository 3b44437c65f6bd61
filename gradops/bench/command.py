"""The command line of `python -m gradops bench`."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gradops.bench import machine, measure, plot, scaling, table
from gradops.bench.forms import find_forms
from gradops.bench.interleave import Report
from gradops.bench.libraries import find_libraries
from gradops.bench.models import MODELS
from gradops.bench.optimizers import ALL, Subject, subjects
from gradops.bench.recipes import Recipe, native_recipes, recipes_of
from gradops.bench.rows import DTYPES, Row
from gradops.bench.zoo import ModelError
from gradops.picture.formats import check_folder, check_picture

NO_GPU = "--device cuda needs a GPU: torch.cuda.is_available() is False here"
GIBIBYTE = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the benchmark's options to `parser`."""
    parser.add_argument(
        "--model",
        nargs="+",
        default=["resnet50"],
        help=f"{', '.join(MODELS)}; NxM for N tensors of M elements; path.py:function for your own; or a name of "
        "torchvision or timm (resnet50)",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="cost against work: parameters 10^4 to --most-params, then tensors 10 to 10,000, in place of --model",
    )
    parser.add_argument("--most-params", type=float, default=3e8, help="where --scaling ends (3e8)")
    parser.add_argument(
        "--optimizer",
        default="AdamW",
        metavar="NAME",
        help="AdamW, SGD or any other of gradops; all for each beside the fastest without gradops (AdamW)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of parameters and gradients")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--recipes", nargs="+", metavar="WORD", help="only recipes whose name has one of the words")
    parser.add_argument("--seconds", type=float, default=15.0, help="samples of a model on a CPU (15)")
    parser.add_argument("--rounds", type=int, default=100, help="samples of each recipe on a GPU (100)")
    parser.add_argument("--threads", type=int, help="of torch and the streams, on a CPU (torch's own choice)")
    parser.add_argument("--memory", type=float, help="GiB for arrays (half of what is free)")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="write a picture to this file")


def main(args: argparse.Namespace) -> int:
    """Measures, prints and writes. Returns the exit status."""
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    check_folder("--json", args.json)
    check_picture("--plot", args.plot)
    if args.scaling and args.optimizer == ALL:
        sys.exit(f"--scaling is of one optimizer, got --optimizer {ALL}")
    try:
        measured, absent = subjects(args.optimizer)
    except ValueError as error:
        sys.exit(f"--optimizer: {error}, {ALL}")
    if args.threads is not None:
        if args.threads < 1:
            sys.exit(f"--threads must be at least 1, got {args.threads}")
        torch.set_num_threads(args.threads)
    console = Console(highlight=False)
    head = machine.provenance(args.device)
    console.print(machine.sentence(head), markup=False)
    memory = args.memory * GIBIBYTE if args.memory else measure.free_memory(args.device)
    plan = measure.Plan(args.device, args.dtype, args.seconds, args.rounds, memory)
    rows: list[Row] = []
    try:
        for case in scaling.cases(args.most_params) if args.scaling else args.model:
            for one in measured:
                candidates, missing = candidates_of(one, args)
                absent |= missing
                recipes = select(case, candidates, args.recipes or ([""] if args.optimizer == ALL else None))
                with progress(console, f"{case}, {one.name}") as report:
                    found = measure.measure(case, plan, recipes, report)
                rows += found
                table.show(console, found, args.device)
                if args.json:
                    write(args.json, head, rows)
    except ModelError as error:
        sys.exit(str(error))
    console.print(table.legend(args.device))
    for name, why in absent.items():
        console.print(f"not measured: {name}: {why}", markup=False)
    if args.plot:
        plot.draw(rows, head, args.plot, args.scaling)
        console.print(f"Picture: {args.plot}", markup=False)
    return 0


def candidates_of(one: Subject, args: argparse.Namespace) -> tuple[list[Recipe], dict[str, str]]:
    """The recipes of an optimizer that the options leave to choose from, and why others cannot be measured, by name."""
    if args.optimizer == ALL:
        return native_recipes(one), {}
    forms, absent = find_forms(args.device, one)
    libraries, unusable = find_libraries(args.device) if one.name == "AdamW" else ([], {})
    return [*recipes_of(one), *forms, *libraries], absent | unusable


def select(case: str, recipes: list[Recipe], words: list[str] | None) -> list[Recipe]:
    """The recipes whose names have one of the words; without words those that are measured on the case.

    The gradops recipes that a chosen one is compared with come along.
    """
    if words is None:
        return [recipe for recipe in recipes if recipe.cases is None or case in recipe.cases]
    chosen = [recipe for recipe in recipes if any(word.lower() in recipe.name.lower() for word in words)]
    if not chosen:
        sys.exit(
            f"--recipes: none has {' or '.join(words)} in its name; there are {', '.join(r.name for r in recipes)}"
        )
    wanted = {recipe.name for recipe in chosen} | {recipe.versus for recipe in chosen}
    return [recipe for recipe in recipes if recipe.name in wanted]


@contextmanager
def progress(console: Console, case: str) -> Iterator[Report | None]:
    """A bar for the rounds of one case, on a terminal."""
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(f"{case}: recipes are built", total=None)
        yield lambda done, rounds: bars.update(bar, description=f"{case}: rounds", completed=done, total=rounds)


def write(path: Path, head: dict[str, Any], rows: list[Row]) -> None:
    """Where the figures come from, and the rows."""
    path.write_text(json.dumps({**head, "rows": [row.figures() for row in rows]}, indent=1) + "\n")
