"""Gradients that somebody rewrites between backward and step, as torch's clip_grad_norm_ does."""

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from gradops.one_pass.groups import params_of

# So many steps running are no accident.
STEPS = 10
_MESSAGE = (
    f"{STEPS} steps running something rewrote the gradients between backward and step, and max_norm is not set. If it "
    "is clip_grad_norm_, delete that call and set max_norm, as in gradops.wrap(optimizer, max_norm=1.0). In place of "
    'torch.amp.GradScaler take loss_scale="dynamic" or gradops.GradScaler. The step then does all of it in one pass'
)


class RewrittenGradientsWarning(UserWarning):
    """The training does beside the step what the step could do."""


class Rewrites:
    """Counts an optimizer's first steps whose gradients were rewritten after backward, and warns of them once.

    A hook of autograd's, which ends with this object, notes the version counter of one parameter's gradient when
    backward has made it; nothing is read from the device. The first step that finds the gradient as it was ends the
    watch.

    Attributes:
        steps: in a row, so far.
    """

    def __init__(self, param: Tensor) -> None:
        self.steps = 0
        self._version: int | None = None
        self._param, watch = weakref.ref(param), weakref.ref(self)

        def note(param: Tensor) -> None:
            if (rewrites := watch()) is not None and param.grad is not None:
                rewrites._version = param.grad._version

        weakref.finalize(self, param.register_post_accumulate_grad_hook(note).remove)

    def after_step(self) -> "Rewrites | None":
        """To be called after each step; what goes on watching, or None."""
        param = self._param()
        noted, self._version = self._version, None
        if param is None or param.grad is None or noted is None or param.grad._version == noted:
            return None
        self.steps += 1
        if self.steps < STEPS:
            return self
        warnings.warn(_MESSAGE, RewrittenGradientsWarning, stacklevel=5)  # where the training calls step()
        return None


def watch_rewrites(optimizer: Any) -> Rewrites | None:
    """Watches the first parameter that has a gradient; None where a rewritten one means nothing.

    Where processes train together, they exchange gradients after backward by writing them.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return None
    params = (p for p in params_of(optimizer.param_groups) if p.grad is not None and p.requires_grad and p.is_leaf)
    first = next(params, None)
    return None if first is None else Rewrites(first)
