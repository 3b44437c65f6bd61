"""timm: `gradopsadam` and `gradopsadamw` for its factory, and `NativeScaler` in place of timm.utils.NativeScaler.

Importing this module registers the names.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import gradops
from gradops._frameworks import clips_in_its_step, needs, settings_for

with needs("timm"):
    from timm import utils
    from timm.optim._optim_factory import OptimInfo, default_registry

# The factory splits names at underscores, so these have none.
OPTIMIZERS = (
    OptimInfo("gradopsadam", gradops.Adam, "Adam, with clipping and loss scale in one pass", has_betas=True),
    OptimInfo("gradopsadamw", gradops.AdamW, "AdamW, with clipping and loss scale in one pass", has_betas=True),
)

for _info in OPTIMIZERS:
    default_registry.register(_info)


class NativeScaler:
    """timm.utils.NativeScaler with a `gradops.GradScaler`, whose norm and value clipping are done in the step.

    The gradients are afterwards what backward made them, unclipped and times the scale, where timm leaves them unscaled
    and clipped; the norm before clipping is `optimizer.stats.grad_norm`. A clipping of other parameters than the
    optimizer's, or to 0, `clip_mode="agc"`, and a clipping by norm for an optimizer that has `clip_mode="agc"` itself,
    go through timm's own, which reads and writes the gradients once more. So does everything for an optimizer that is
    not gradops's.

    Args:
        device: the scaler's.
        **options: further arguments of `gradops.GradScaler`.
    """

    state_dict_key = utils.NativeScaler.state_dict_key

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
            clip_grad: max_norm, clip_value, or the factor of "agc", None for no clipping.
            clip_mode: "norm", "value" or "agc".
            parameters: what to clip; must be given with `clip_grad`.
        """
        self._scaler.scale(loss).backward(create_graph=create_graph)
        if not need_update:
            return
        settings: dict[str, float] = {}
        if clip_grad is not None:
            if parameters is None:
                raise ValueError("clip_grad needs the parameters to clip")
            settings = self._clip(optimizer, clip_grad, clip_mode, list(parameters))
        with settings_for(optimizer, settings):
            self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state_dict)

    def _clip(
        self, optimizer: torch.optim.Optimizer, clip_grad: float, clip_mode: str, parameters: list[Tensor]
    ) -> dict[str, float]:
        """The step's settings that clip as asked; clips here and now where there are none."""
        value = float(clip_grad)
        settings = {"norm": {"max_norm": value, "norm_type": 2.0}, "value": {"clip_value": value}}.get(clip_mode)
        if settings is not None and clips_in_its_step(optimizer, parameters, settings):
            return settings
        self._scaler.unscale_(optimizer)
        utils.dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
        return {}
