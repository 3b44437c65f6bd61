"""fastai: `GradOps`, one callback in place of MixedPrecision and GradientClip, and our optimizers as `opt_func`.

`Adam` has the arguments and defaults of fastai's own. `SGD` and every other optimizer of gradops is here by its name,
with its own defaults and with fastai's names for its arguments: `opt_func=partial(gradops.fastai.SGD, mom=0.9)`.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from gradops.fastai.callback import GradOps, StepRecorder
from gradops.fastai.optimizer import Adam, Optimizer, of_class
from gradops.optim.classes import classes

__all__ = ["Adam", "GradOps", "Optimizer", "StepRecorder"]

# Type checkers would take it for a promise that every name is there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in classes():
            return partial(of_class, classes()[name])
        raise AttributeError(f"module 'gradops.fastai' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *classes()})
