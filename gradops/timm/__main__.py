"""Runs a training script of timm's kind with gradops: `python -m gradops.timm train.py --opt gradopssgd ...`."""

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence

from timm import utils
from timm.utils import model_ema

from gradops.timm import ModelEma

# timm has tasks, which make the average, since 1.0.23.
_TASK = [importlib.import_module("timm.task.task")] if importlib.util.find_spec("timm.task") else []

USAGE = """usage: python -m gradops.timm SCRIPT [its arguments]

Runs a training script, such as timm's train.py, as Python would. Optimizers named gradopsadamw, gradopssgd and so on
clip in their step (--clip-grad) and average the weights in it (--model-ema); for others nothing changes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the script; `sys.argv`, `sys.path` and timm's names are afterwards as they were.

    Args:
        argv: the script and its arguments; those of the process when None.

    Returns:
        The exit status: 2 without a script.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if not os.path.exists(arguments[0]):
        print(f"{arguments[0]} is not there\n\n{USAGE}", file=sys.stderr)
        return 2
    was, path = sys.argv, list(sys.path)
    sys.argv, sys.path[0] = arguments, os.path.dirname(os.path.abspath(arguments[0]))
    timms = [(module, vars(module)["ModelEmaV3"]) for module in (utils, model_ema, *_TASK)]
    try:
        for module, _ in timms:
            module.ModelEmaV3 = ModelEma
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        for module, cls in timms:
            module.ModelEmaV3 = cls
        sys.argv, sys.path[:] = was, path
    return 0


if __name__ == "__main__":
    sys.exit(main())
