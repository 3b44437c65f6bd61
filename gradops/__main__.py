"""Find out why a training explodes, keep it alive, and see what its steps cost."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gradops import env
from gradops._version import __version__


class Command(NamedTuple):
    """A command: what it is for, the module behind it, and the extra that installs what the module needs."""

    name: str
    purpose: str
    module: str
    extra: str

    def fill(self, parser: argparse.ArgumentParser) -> None:
        """Imports the module, which takes seconds that other commands need not wait for."""
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as missing:
            sys.exit(f"{self.name} needs {missing.name}: run pip install 'gradops[{self.extra}]'")
        module.add_arguments(parser)
        parser.set_defaults(run=module.main)


COMMANDS = (
    Command("demo", "train a CNN that explodes, and cure it", "gradops.demo", "demo"),
    Command("bench", "time the optimizer phase beside every recipe of torch's", "gradops.bench.command", "report"),
    Command("profile", "where a training step's time and memory go", "gradops.profile.command", "report"),
    Command("build", "compile the native code for the torch that is installed", "gradops.building.command", "report"),
    Command("report", "which layer exploded in a recorded run, when and why", "gradops.diagnose.command", "report"),
    Command("guide", "a section of the guide to exploding gradients", "gradops.diagnose.guide", "report"),
)


def _add_env(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("env", help="versions and backends, for a bug report")
    parser.set_defaults(run=lambda _: print(env.report()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand, or prints what there are.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_module = Path(sys.argv[0]).resolve() == Path(__file__).resolve()
    parser = argparse.ArgumentParser(prog="python -m gradops" if as_module else "gradops", description=__doc__)
    parser.add_argument("--version", action="version", version=f"gradops {__version__}")
    parser.set_defaults(run=lambda _: parser.print_help())
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_env(commands)
    for command in COMMANDS:
        added = commands.add_parser(command.name, help=command.purpose, description=command.purpose)
        if arguments[:1] == [command.name]:
            command.fill(added)
    args = parser.parse_args(arguments)
    status: int | None = args.run(args)
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
