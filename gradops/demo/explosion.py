"""What explodes in the demo: an optimizer, a rate at which it does, and the cap with which it does not."""

from dataclasses import dataclass

import torch

import gradops
from gradops.one_pass.one_pass import OnePass
from gradops.optim.classes import class_named, native_class, torchs_class

MAX_NORM = 0.3
CAP = gradops.RelativeStepCap(0.1, warmup_steps=100)
LR = 0.1
# Looked for on this task, by name. SGD learns at 1 (loss 0.03 with the clip) and explodes at 3: with seeds 0 to 3 it
# ends at NaN or at guessing, 0.53, clipped or not, and capped at 0.05 to 0.07. A cap of 0.1 is too wide for it (seed 0,
# rate 10): momentum, which the cap does not see, makes its steps ten times as long and more.
_RATES = {"AdamW": (LR, CAP), "SGD": (3.0, gradops.RelativeStepCap(0.01, warmup_steps=100))}


@dataclass(frozen=True)
class Explosion:
    """An optimizer's three runs.

    Attributes:
        ours: of gradops.
        theirs: what people use in its place.
        lr: peak learning rate.
        cap: of the run that is to live.
        looked_for: whether rate and cap come from trials of this optimizer, or are AdamW's.
    """

    ours: type[OnePass]
    theirs: type[torch.optim.Optimizer]
    lr: float
    cap: gradops.RelativeStepCap
    looked_for: bool

    @property
    def runs(self) -> tuple[str, str, str]:
        """The runs, called by their settings."""
        return self.ours.__name__, f"clip {MAX_NORM:g}", f"clip {MAX_NORM:g} + cap {self.cap.cap:g}"

    @property
    def lines(self) -> str:
        """What the last run does."""
        made_of = "wrap(optimizer" if torchs_class(self.ours) else f"{self.ours.__name__}(params"
        return (
            f"cap = gradops.RelativeStepCap({self.cap.cap:g}, warmup_steps={self.cap.warmup_steps})\n"
            f"optimizer = gradops.{made_of}, max_norm={MAX_NORM:g}, max_relative_step=cap)"
        )


def explosion(name: str = "AdamW", lr: float | None = None) -> Explosion:
    """Of the optimizer of that name, in capitals or not, up to its own rate if none is given.

    Raises:
        ValueError: gradops has no such optimizer.
        ImportError: what has its native class is not installed.
    """
    ours = class_named(name)
    rate, cap = _RATES.get(ours.__name__, (LR, CAP))
    return Explosion(ours, native_class(ours), lr or rate, cap, ours.__name__ in _RATES)
