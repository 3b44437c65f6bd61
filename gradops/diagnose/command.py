"""The command line of `python -m gradops report`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from gradops.diagnose.comparison import compare
from gradops.diagnose.report import report
from gradops.picture import page, plot
from gradops.picture.formats import check_folder, check_picture
from gradops.record.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the report's options to `parser`."""
    parser.add_argument(
        "recordings",
        type=Path,
        nargs="+",
        metavar="run.npz",
        help="what gradops.Recorder saved; of two, where they part",
    )
    parser.add_argument("--html", type=Path, metavar="report.html", help="write an interactive page, of one run")
    parser.add_argument("--plot", type=Path, metavar="run.png", help="write a picture")


def main(args: argparse.Namespace) -> int:
    """Prints the report and writes what was asked for. Returns the exit status."""
    check_picture("--plot", args.plot)
    check_folder("--html", args.html)
    if len(args.recordings) > 1:
        return _compare(args.recordings, args.html, args.plot)
    try:
        run = Run.load(args.recordings[0])
        found = report(run)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    console = Console(highlight=False)
    found.print(console)
    try:
        _write(console, run, args.html, args.plot)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    return 0


def _compare(paths: list[Path], html: Path | None, picture: Path | None) -> int:
    """Prints the verdict on two runs, and where they part."""
    if len(paths) > 2:
        sys.exit(f"report compares two runs, got {len(paths)}")
    if html is not None:
        sys.exit("--html shows one run; --plot draws two")
    names = _distinct(paths)
    try:
        first, second = map(Run.load, paths)
        verdicts = [f"{name}: {report(run).verdict}" for name, run in zip(names, (first, second), strict=True)]
        compared = compare(first, second, names)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    console = Console(highlight=False)
    for line in verdicts:
        console.print(line, markup=False)
    console.print(f"\n{compared}", markup=False)
    try:
        if picture is not None:
            compared.plot(picture)
            console.print(f"\nPicture: {picture}", markup=False)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    return 0


def _distinct(paths: list[Path]) -> tuple[str, str]:
    """The files' names, or their paths where the names are the same."""
    first, second = (path.name for path in paths)
    return (first, second) if first != second else (str(paths[0]), str(paths[1]))


def _write(console: Console, run: Run, html: Path | None, picture: Path | None) -> None:
    if html is not None:
        page.write(run, html)
        console.print(f"\nPage: {html}", markup=False)
    if picture is not None:
        plot(run, picture)
        console.print(f"\nPicture: {picture}", markup=False)
