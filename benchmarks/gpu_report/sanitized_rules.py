"""Stage 8: compute-sanitizer's four tools over small steps of every rule, with all of its moments and an average."""

import sys

from benchmarks.gpu_report.runner import Command, Target
from benchmarks.gpu_report.sanitizer import AT_ONCE, small_steps, watched

__all__ = ["AT_ONCE", "NAME", "commands"]

NAME = "sanitized_rules"
# By class, what gives its updates every moment that the rule has.
OPTIONS = {
    "Adagrad": {},
    "Adam": {"amsgrad": True},
    "Adamax": {},
    "LARS": {"momentum": 0.9, "weight_decay": 0.1},
    "Lion": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "SGD": {"momentum": 0.9, "nesterov": True},
}


def commands(target: Target) -> list[Command]:
    return watched(target, "benchmarks.gpu_report.sanitized_rules")


def _steps(device: str) -> None:
    import torch

    import gradops

    for one_launch in (True, False):
        gradops._C.allow_one_launch(one_launch)
        for name, options in OPTIONS.items():
            settings = {"lr": 0.01, "max_norm": 1.0, "ema": gradops.WeightEma(0.5)}
            small_steps(getattr(gradops, name), device, torch.float32, **settings, **options)


if __name__ == "__main__":
    _steps(*sys.argv[1:])
