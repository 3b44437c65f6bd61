"""fastai: `GradOps`, one callback in place of MixedPrecision and GradientClip, and `Adam`, an opt_func."""

from gradops.fastai.callback import GradOps, StepRecorder
from gradops.fastai.optimizer import Adam, Optimizer

__all__ = ["Adam", "GradOps", "Optimizer", "StepRecorder"]
