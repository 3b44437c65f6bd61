"""The command line of `python -m gradops profile`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from gradops.bench import machine
from gradops.bench.formats import memory as size
from gradops.bench.optimizers import FORMS, subject
from gradops.bench.zoo import ModelError
from gradops.profile import batch, page, result, screen, tables, timeline
from gradops.profile.loop import NAMES, PRECISIONS, Settings
from gradops.profile.result import Result
from gradops.profile.training import DEMO, Source

AUTO = "auto"
GIBIBYTE = 2**30
NO_GPU = "--device cuda needs a GPU: torch.cuda.is_available() is False here"
NO_LIMIT = "--batch-size auto needs --memory-limit on a CPU, which would rather swap than refuse"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the profiler's options to `parser`."""
    parser.add_argument(
        "training",
        nargs="?",
        metavar="train.py:make_training",
        help="a function that returns (model, optimizer, data, loss)",
    )
    parser.add_argument("--model", help=f"a name of torchvision or timm, on random images ({DEMO})")
    parser.add_argument(
        "--batch-size",
        type=_batch_sizes,
        default=None,
        metavar="N[,N...]|auto",
        help="of one forward pass; several are compared; auto is the largest that fits",
    )
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 and fp16 run under autocast")
    parser.add_argument("--accumulate", type=int, default=1, help="forward and backward passes that make a step (1)")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again in backward")
    parser.add_argument("--max-norm", type=float, default=1.0, help="the gradients' norm is clipped to it (1.0)")
    parser.add_argument("--optimizer", metavar="NAME", help="any of gradops, for --model (AdamW)")
    parser.add_argument("--form", choices=FORMS, help="of torch's optimizer for --model (the fastest that it has)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images for --model (224)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory-limit", type=float, metavar="GIB", help="of --batch-size auto")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each loop (20)")
    parser.add_argument("--profiled-steps", type=int, default=5, help="steps under the profiler after those (5)")
    parser.add_argument("--output", type=Path, default=Path("gradops-profile"), help="folder for what is written")


def _batch_sizes(text: str) -> list[int] | str:
    if text == AUTO:
        return AUTO
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers such as 64 or 64,128, or auto, got {text}") from None
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return sizes


def main(args: argparse.Namespace) -> int:
    """Trains, profiles, prints and writes. Returns the exit status."""
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    if args.batch_size == AUTO and args.memory_limit is None and args.device == "cpu":
        sys.exit(NO_LIMIT)
    if args.steps < 2 or args.profiled_steps < 1 or args.accumulate < 1:
        sys.exit("--steps must be at least 2, --profiled-steps and --accumulate at least 1")
    if args.training and args.model:
        sys.exit(f"--model {args.model} and {args.training} both name what is trained; leave one out")
    if args.training and ":" not in args.training:
        sys.exit(f"{args.training} names no function; write {args.training}:make_training")
    _check_optimizer(args)
    args.output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    name = args.training or args.model or DEMO
    source = Source(name, args.image_size, args.optimizer or "AdamW", args.form, args.device, args.checkpointing)
    settings = Settings(args.device, args.precision, args.accumulate, args.max_norm)
    head = machine.provenance(args.device)
    console.print(machine.sentence(head), markup=False)
    try:
        results = [_profile(console, source, settings, size, args) for size in _sizes(console, source, settings, args)]
    except ModelError as error:
        sys.exit(str(error))
    _write(console, results, _title(name, settings, source), head, args)
    return 0


def _check_optimizer(args: argparse.Namespace) -> None:
    if args.training and (args.optimizer or args.form):
        sys.exit(f"--optimizer and --form are for --model; {args.training} makes its own")
    try:
        subject(args.optimizer or "AdamW")
    except (ValueError, ImportError) as error:
        sys.exit(f"--optimizer: {error}")


def _sizes(console: Console, source: Source, settings: Settings, args: argparse.Namespace) -> list[int | None]:
    if args.batch_size != AUTO:
        return args.batch_size or [None]
    limit = args.memory_limit * GIBIBYTE if args.memory_limit else None

    def report(batch_size: int, taken: int | None) -> None:
        console.print(f"batch size {batch_size}: {'out of memory' if taken is None else size(taken)}", markup=False)

    found = batch.search(source, settings, limit, report)
    if found == 0:
        sys.exit("--batch-size auto: not even one image fits")
    console.print(f"the largest batch that fits: {found}", markup=False)
    return [found]


def _profile(
    console: Console, source: Source, settings: Settings, batch_size: int | None, args: argparse.Namespace
) -> Result:
    title = f"batch size {batch_size}" if batch_size else "steps"
    with screen.progress(console, title, 2 * (args.steps + result.WARMUPS)) as report:
        found = result.run(source, settings, batch_size, args.steps, args.profiled_steps, report)
    for table in tables.of_result(found, args.device):
        screen.show(console, table)
    return found


def _title(name: str, settings: Settings, source: Source) -> str:
    accumulated = f", {settings.accumulate} batches accumulated" if settings.accumulate > 1 else ""
    used = (
        "" if source.is_own else f"{subject(source.optimizer).library}'s {subject(source.optimizer).theirs.__name__}, "
    )
    return f"{name}, {used}{settings.precision}{accumulated}{', checkpointing' if source.checkpointing else ''}"


def _write(console: Console, results: list[Result], title: str, head: dict[str, Any], args: argparse.Namespace) -> None:
    """Traces, pictures, the page and the figures, into the output folder."""
    files: list[Path] = []
    facts = [machine.sentence(head), head["command"], head["when"]]
    sections: list[tuple[Result | None, list[tables.Table], Path | None]] = []
    if len(results) > 1:
        summary = tables.batch_sizes(results)
        screen.show(console, summary)
        sections.append((None, [summary], None))
    for found in results:
        suffix = f"-{found.batch_size}" if len(results) > 1 else ""
        for loop in NAMES:
            files.append(args.output / f"trace-{loop}{suffix}.json")
            files[-1].write_text(json.dumps(found.trace.only(loop)))
        picture = args.output / f"timeline{suffix}.png"
        timeline.draw(found, f"{title}, batch size {found.batch_size}", "\n".join(facts[:2]), picture)
        files.append(picture)
        sections.append((found, tables.of_result(found, args.device), picture))
    page.write(args.output / "report.html", f"gradops profile: {title}", facts, sections)
    document = {**head, "results": [_figures(found) for found in results]}
    (args.output / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    names = ", ".join(["report.html", "report.json", *(path.name for path in files)])
    console.print(f"\nIn {args.output}: {names}. Traces open in ui.perfetto.dev.", markup=False)


def _figures(found: Result) -> dict[str, Any]:
    """Everything that tables are made of, for other programs."""
    return {
        "batch_size": found.batch_size,
        "images": found.images,
        "speedup_quartiles": found.speedup_quartiles,
        "loops": {
            name: {
                "seconds": found.samples[name].seconds,
                "phases": {phase: asdict(cost) for phase, cost in found.costs[name].items()},
                "memory": {**asdict(found.memory[name]), "curve": None},
                "records": [asdict(record) for record in found.records[name]],
            }
            for name in NAMES
        },
    }
