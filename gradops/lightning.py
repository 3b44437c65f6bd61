"""Lightning: `GradOpsPrecision`, a precision plugin, and `GradNormMonitor`, which logs what the steps measured."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

import gradops
from gradops._frameworks import check_settings, clip_now_, grad_scale_of, measured_norm, needs, settings_with
from gradops.one_pass.one_pass import OnePass
from gradops.optim.wrap import rule_for

with needs("lightning"):
    from lightning.pytorch import Callback
    from lightning.pytorch.plugins.precision import MixedPrecision
    from lightning.pytorch.utilities import GradClipAlgorithmType

# Lightning calls its hooks with gradients as backward left them, and the scaler is the plugin's.
_NOT_HERE = ("loss_scale", "backend")


class GradOpsPrecision(MixedPrecision):
    """Precision plugin with which `gradient_clip_val` and mixed precision work, and are done in the one pass.

    The module's optimizers are wrapped when training starts; those that `gradops.wrap` does not take stay torch's, and
    where there are settings one at least must be taken.
    Lightning's own plugin refuses to clip for an optimizer that unscales in its step. The step clips, and writes no
    gradient: they stay as backward left them, still scaled and unclipped, in `on_before_optimizer_step`, in a module's
    own `configure_gradient_clipping` after its `super()`, and after the step. Their norm, unscaled and before clipping,
    is `trainer.precision_plugin.grad_norm(optimizer)` until the step, and then in `optimizer.stats`.

    Args:
        precision: "32-true", "bf16-mixed" or "16-mixed".
        device: what autocast and the scaler run on; "cuda" if there is one, else "cpu".
        scaler: for "16-mixed", a `gradops.GradScaler`; by default one with its default arguments.
        **settings: those of `gradops.wrap` but `loss_scale`, which is the scaler's, and `backend`. `protect=True`
            protects the module that is trained.

    Raises:
        ValueError, TypeError: `precision` or a setting is out of its range; when training starts, there are settings
            and no optimizer that can be wrapped.
    """

    def __init__(
        self,
        precision: str = "32-true",
        device: str | None = None,
        scaler: torch.amp.GradScaler | None = None,
        **settings: Any,
    ) -> None:
        for name in _NOT_HERE:
            if name in settings:
                raise TypeError(f"{name} is no argument of GradOpsPrecision")
        check_settings(settings)
        self.settings = settings
        self.clipped: dict[OnePass, tuple[float | None, float, float | None]] = {}
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if precision == "32-true":
            self.precision, self.device, self.scaler = precision, device, None
            return
        if scaler is None and precision == "16-mixed":
            scaler = gradops.GradScaler(device)
        super().__init__(precision, device, scaler)

    def connect(self, model: Any, optimizers: list[Any], lr_schedulers: list[Any]) -> tuple[Any, list[Any], list[Any]]:
        """Wraps the optimizers, in place."""
        taken = [optimizer for optimizer in optimizers if rule_for(optimizer) is not None]
        # Where none is taken, wrap says of the first why the settings cannot hold.
        for optimizer in taken or (optimizers[:1] if self.settings else []):
            if self.settings or not isinstance(optimizer, OnePass):
                gradops.wrap(optimizer, **settings_with(self.settings, model))
        return model, optimizers, lr_schedulers

    def clip_gradients(
        self,
        optimizer: Any,
        clip_val: int | float | None = 0.0,
        gradient_clip_algorithm: Any = GradClipAlgorithmType.NORM,
    ) -> None:
        """Has the optimizer's next step clip, and only that one; clips at once if it has `clip_mode="agc"`."""
        target = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(target, OnePass):
            super().clip_gradients(optimizer, clip_val or 0.0, gradient_clip_algorithm)
            return
        if not clip_val or clip_val < 0:
            return
        by_norm = gradient_clip_algorithm != GradClipAlgorithmType.VALUE
        if by_norm and target.clip_mode == "agc":
            clip_now_(target, grad_scale_of(target, self.scaler), max_norm=float(clip_val))
            return
        self.clipped.setdefault(target, (target.max_norm, target.norm_type, target.clip_value))
        if by_norm:
            target.max_norm, target.norm_type = float(clip_val), 2.0
        else:
            target.clip_value = float(clip_val)

    def grad_norm(self, optimizer: Any, norm_type: float = 2.0) -> torch.Tensor:
        """The norm of a gradops optimizer's gradients as they are between backward and the step, unscaled.

        For hooks, `on_before_optimizer_step` for one. Reads every gradient once; waits for nothing.

        Args:
            optimizer: the optimizer, or Lightning's wrapper of it.
            norm_type: positive, may be inf.

        Returns:
            0-d, on the gradients' device; after clipping by value, before clipping by norm. NaN or inf if a gradient
            holds one.
        """
        target = getattr(optimizer, "optimizer", optimizer)
        if not isinstance(target, OnePass):
            raise TypeError(f"grad_norm takes a gradops optimizer, got {type(target).__name__}")
        return measured_norm(target, grad_scale_of(target, self.scaler), target.clip_value, norm_type)

    def optimizer_step(self, optimizer: Any, model: Any, closure: Callable[[], Any], **kwargs: Any) -> Any:
        """Lightning's, after which the optimizer's own settings hold again."""
        try:
            return super().optimizer_step(optimizer, model=model, closure=closure, **kwargs)
        finally:
            own = self.clipped.pop(optimizer, None)
            if own is not None:
                optimizer.max_norm, optimizer.norm_type, optimizer.clip_value = own

    def forward_context(self) -> Any:
        """Autocast, but for "32-true"."""
        return nullcontext() if self.precision == "32-true" else super().forward_context()


class GradNormMonitor(Callback):
    """Logs each step's `grad_norm` before clipping, `clip_coef`, `loss_scale` and `steps_skipped`.

    The values are logged as snapshots on the device: nobody waits for it before the logger writes them, every
    `log_every_n_steps`. With several optimizers the names end in `/0`, `/1`, and so on.
    """

    NAMES = ("grad_norm", "clip_coef", "loss_scale", "steps_skipped")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        for index, optimizer in enumerate(trainer.optimizers):
            if isinstance(optimizer, OnePass):
                suffix = f"/{index}" if len(trainer.optimizers) > 1 else ""
                values = {name + suffix: getattr(optimizer.stats, name).float().clone() for name in self.NAMES}
                pl_module.log_dict(values, on_step=True, on_epoch=False)
