"""The command line of `python -m gradops report`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from gradops.diagnose.report import report
from gradops.picture import page, plot
from gradops.record.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the report's options to `parser`."""
    parser.add_argument("recording", type=Path, metavar="run.npz", help="what gradops.Recorder saved")
    parser.add_argument("--html", type=Path, metavar="report.html", help="write an interactive page")
    parser.add_argument("--plot", type=Path, metavar="run.png", help="write a picture")


def main(args: argparse.Namespace) -> int:
    """Prints the report and writes what was asked for. Returns the exit status."""
    try:
        run = Run.load(args.recording)
        found = report(run)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    console = Console(highlight=False)
    found.print(console)
    try:
        _write(run, args.html, args.plot)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    return 0


def _write(run: Run, html: Path | None, picture: Path | None) -> None:
    if html is not None:
        page.write(run, html)
    if picture is not None:
        plot(run, picture)
