"""`NativeScaler` in place of timm.utils.NativeScaler."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from timm import utils
from torch import Tensor

import gradops
from gradops.timm.clip import clip_in_step, timms_dispatch

_Timms: Any = next(cls for cls in utils.NativeScaler.__mro__ if cls.__module__ == "timm.utils.cuda")


class NativeScaler(_Timms):
    """timm.utils.NativeScaler with a `gradops.GradScaler`, whose clipping is done in the step.

    The gradients are afterwards what backward made them, unclipped and times the scale, where timm leaves them unscaled
    and clipped; the norm before clipping is `optimizer.stats.grad_norm`. What `dispatch_clip_grad` leaves to timm's
    own, everything for an optimizer that is not gradops's among it, goes through that here too, which reads and writes
    the gradients once more.

    Args:
        device: the scaler's.
        **options: further arguments of `gradops.GradScaler`.
    """

    def __init__(self, device: str = "cuda", **options: Any) -> None:
        self._scaler = gradops.GradScaler(device, **options)

    def __call__(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Iterable[Tensor] | None = None,
        create_graph: bool = False,
        need_update: bool = True,
    ) -> None:
        """Backward of the scaled loss and, with `need_update`, the step.

        Args:
            loss: unscaled.
            optimizer: which steps.
            clip_grad: max_norm, clip_value, or the factor of "agc", None for no clipping.
            clip_mode: "norm", "value" or "agc".
            parameters: what to clip; must be given with `clip_grad`.
            create_graph: of the backward.
            need_update: False while gradients accumulate.
        """
        self._scaler.scale(loss).backward(create_graph=create_graph)
        if not need_update:
            return
        clip = None
        if clip_grad is not None:
            if parameters is None:
                raise ValueError("clip_grad needs the parameters to clip")
            listed = list(parameters)
            clip = clip_in_step(optimizer, listed, clip_grad, clip_mode, 2.0)
            if clip is None:
                self._scaler.unscale_(optimizer)
                timms_dispatch(listed, clip_grad, mode=clip_mode)
        with nullcontext() if clip is None else clip.active():
            self._scaler.step(optimizer)
        self._scaler.update()
