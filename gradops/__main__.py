"""Command line: `python -m gradops env` and `python -m gradops demo`."""

import argparse
import sys
from collections.abc import Sequence

from gradops import env


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("demo", help="train a CNN that explodes, and cure it")
    try:
        from gradops import demo
    except ModuleNotFoundError as missing:
        sentence = f"the demo needs {missing.name}: run pip install 'gradops[demo]'"
        parser.set_defaults(run=lambda _: sys.exit(sentence))
        return
    demo.add_arguments(parser)
    parser.set_defaults(run=demo.main)


def _add_env(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("env", help="versions and backends, for a bug report")
    parser.set_defaults(run=lambda _: print(env.report()))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the arguments after the program's name; those of the process when None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m gradops", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_env(commands)
    # Asked for by name only, since its imports take seconds that `env` need not wait for.
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] != ["env"]:
        _add_demo(commands)
    args = parser.parse_args(arguments)
    status: int | None = args.run(args)
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
