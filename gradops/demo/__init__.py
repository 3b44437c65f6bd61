"""`python -m gradops demo`: a real explosion on real images, and its cure.

A residual CNN without normalisation is trained three times from the same seed: with AdamW or another optimizer, with it
and gradient clipping, and with it in gradops, with clipping and `max_relative_step`.
"""

import argparse
import pathlib
import sys
import textwrap
from collections.abc import Callable

import torch

from gradops.demo import digits, picture, screen
from gradops.demo.explosion import CAP, MAX_NORM, Explosion, explosion
from gradops.demo.network import ResidualNet, emulates_half
from gradops.demo.recipes import GradopsRecipe, Recipe, TorchRecipe
from gradops.demo.training import PRECISIONS, Run, Task, train
from gradops.picture.formats import check_picture

TRAIN_CANVASES = 6000
HELD_OUT_CANVASES = 1000

__all__ = ["CAP", "MAX_NORM", "add_arguments", "main", "make_recipe", "make_task"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the demo's options to `parser`."""
    parser.add_argument("--optimizer", default="AdamW", metavar="NAME", help="any of gradops (default: AdamW)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="fp16 and bf16 run under autocast")
    parser.add_argument("--seed", type=int, default=0, help="of weights, canvases and their order (default: 0)")
    parser.add_argument("--steps", type=_positive(int), default=320, help="steps of each run (default: 320)")
    parser.add_argument("--lr", type=_positive(float), help="peak learning rate (default: one that explodes)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("gradops-demo.png"), help="the picture")


def main(args: argparse.Namespace) -> int:
    """Trains the three runs, prints the table and writes the picture. Returns the exit status."""
    check_picture("--output", args.output)
    try:
        trial = explosion(args.optimizer, args.lr)
    except (ValueError, ImportError) as error:
        print(f"--optimizer: {error}", file=sys.stderr)
        return 2
    task = make_task(args.seed, args.steps, trial.lr, args.precision, TRAIN_CANVASES, HELD_OUT_CANVASES)
    display = screen.Screen()
    display.announce(task, trial.ours.__name__, emulated=half_is_emulated(task))
    if args.lr is None and not trial.looked_for:
        display.say("Where this optimizer explodes was not looked for: the rate is AdamW's, --lr takes another.")
    runs = []
    with display.progress(task) as report:
        for name in trial.runs:
            run = Run(name, units=0)
            runs.append(run)
            torch.manual_seed(task.seed)
            network = ResidualNet()
            run.units = network.head.out_features
            train(task, run, network, make_recipe(name, network, task, trial), report)
    display.table(task, runs)
    picture.draw(task, runs, args.output)
    display.say(f"\nThe last run is the one before with these two lines:\n\n{textwrap.indent(trial.lines, '    ')}\n")
    display.say(f"Picture: {args.output}")
    return 0


def make_task(
    seed: int,
    steps: int,
    lr: float,
    precision: str = "fp32",
    train_canvases: int = TRAIN_CANVASES,
    held_out_canvases: int = HELD_OUT_CANVASES,
) -> Task:
    """Composes the canvases of `seed` and returns the task that all runs share."""
    train_digits, held_out_digits = digits.load_digits()
    return Task(
        digits.compose(train_digits, train_canvases, seed),
        digits.compose(held_out_digits, held_out_canvases, seed),
        seed=seed,
        steps=steps,
        lr=lr,
        precision=precision,
    )


def make_recipe(name: str, network: ResidualNet, task: Task, trial: Explosion) -> Recipe:
    """The optimizer of one of the trial's runs."""
    plain, clipped, _ = trial.runs
    if name in (plain, clipped):
        max_norm = MAX_NORM if name == clipped else None
        return TorchRecipe(network, task.lr, task.scaled, max_norm, trial.theirs)
    return GradopsRecipe(network, task.lr, task.scaled, MAX_NORM, trial.cap, trial.ours)


def half_is_emulated(task: Task) -> bool:
    """Whether this CPU lacks the arithmetic of the task's precision."""
    with task.autocast():
        return emulates_half()


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse
