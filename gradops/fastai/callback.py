"""The callbacks: `GradOps`, which trains, and `StepRecorder`, which keeps what the steps measured."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

import gradops
from gradops._frameworks import check_settings, name_params, needs, settings_with
from gradops.fastai.optimizer import Adam, Optimizer, of_class
from gradops.one_pass.one_pass import OnePass
from gradops.optim.wrap import TAKEN

with needs("fastai"):
    from fastai import optimizer as fastai_optimizer
    from fastai.callback.core import Callback, CancelStepException
    from fastai.callback.fp16 import MixedPrecision, NonNativeMixedPrecision
    from fastai.callback.training import GradientClip
    from fastai.torch_core import to_float

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Read at each step, so that a fit can set and restore them; a backend is chosen once, when an optimizer is made.
_FIXED = ("backend",)


class GradOps(Callback):
    """Mixed precision, loss scale, clipping and the step in one pass, in place of MixedPrecision and GradientClip.

    The learner's optimizer may be made by fastai's `Adam` (the default) or `SGD`, by `gradops.fastai.Adam`, `SGD` and
    so on, or by an `OptimWrapper` of an optimizer that `gradops.wrap` takes; the first fit upgrades it, with the state
    that it has.
    Settings hold while a fit runs. After a step that an inf or NaN made the optimizer skip, the event
    `after_cancel_step` runs. It is known by reading one number from the device after each step, as fastai itself does
    for the loss.

    The step writes no gradient: other callbacks see them as backward left them, times the loss scale and unclipped.
    `learn.opt.opt.unscale_()` divides them in `before_step`; the norm is in `stats` after the step. `save`, `load` and
    `export` keep fastai's format: files written with GradOps are read without it, and the other way round.

    Args:
        precision: "fp32", "bf16" or "fp16": what autocast makes of the model's forward, on any device. The
            predictions that the loss function sees are float32.
        **settings: those of `gradops.wrap`. "fp16" takes `loss_scale="dynamic"` if none is given, and
            `protect=True` protects the learner's model.

    Raises:
        ValueError, TypeError: `precision` or a setting is out of its range.
    """

    order = MixedPrecision.order

    def __init__(self, precision: str = "fp32", **settings: Any) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        for name in _FIXED:
            if name in settings:
                raise TypeError(f"{name} is an argument of the opt_func, not of GradOps")
        self.precision = precision
        self.settings = {"loss_scale": "dynamic", **settings} if precision == "fp16" else settings
        check_settings(self.settings)
        self.undo = ExitStack()

    @property
    def stats(self) -> gradops.StepStats:
        """What the optimizer's last step measured; `learn.grad_ops.stats` from elsewhere."""
        return self.learn.opt.opt.stats

    def before_fit(self) -> None:
        """Upgrades the optimizer, and has autocast and the settings in force until the fit ends."""
        self.undo.close()  # of a fit that was interrupted
        _refuse(self.learn.cbs, (MixedPrecision, NonNativeMixedPrecision, GradientClip))
        self._autocast(self.learn.model)
        if self.learn.opt is None:
            return  # predictions before the first fit
        _upgrade(self.learn)
        optimizer = self.learn.opt.opt
        self._set(optimizer)
        self.steps_skipped = int(optimizer.stats.steps_skipped)
        self.undo.callback(optimizer.register_step_post_hook(self._cancel_if_skipped).remove)

    def after_pred(self) -> None:
        self.learn.pred = to_float(self.learn.pred)

    def before_backward(self) -> None:
        self.learn.loss_grad = self.learn.opt.opt.scale(self.learn.loss_grad)

    def after_fit(self) -> None:
        """Takes back all that `before_fit` did but the upgrade."""
        self.undo.close()

    def _autocast(self, model: nn.Module) -> None:
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            return
        # As the forward's decorator, autocast also ends with a forward that raises or is interrupted.
        device = next(model.parameters()).device.type
        forward = model.__dict__.get("forward")
        model.forward = torch.autocast(device, dtype=dtype)(model.forward)
        if forward is None:
            self.undo.callback(model.__dict__.pop, "forward", None)
        else:
            self.undo.callback(setattr, model, "forward", forward)

    def _set(self, optimizer: OnePass) -> None:
        for name, value in settings_with(self.settings, self.learn.model).items():
            self.undo.callback(setattr, optimizer, name, getattr(optimizer, name))
            setattr(optimizer, name, value)
        # Now, so that a checkpoint taken before the first batch (lr_find takes one) has this policy's scale.
        optimizer.engine.scaling.follow(optimizer.loss_scale)
        self.undo.callback(_drop_scaled_gradients, optimizer)

    def _cancel_if_skipped(self, optimizer: OnePass, *_: Any) -> None:
        before, self.steps_skipped = self.steps_skipped, int(optimizer.stats.steps_skipped)
        if self.steps_skipped > before:
            raise CancelStepException


class StepRecorder(Callback):
    """A `gradops.Recorder` for each fit: what every step measured, and the layers' activations.

    Beside fastai's ActivationStats it also counts NaN and inf, and negative and large activations. `lr_find` and
    predictions are not recorded. `learn.step_recorder.recorder` is that of the last fit, for its `run` and `save`.

    Args:
        **options: those of `gradops.Recorder`.
    """

    order = GradOps.order + 1

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.recorder: gradops.Recorder | None = None

    def before_fit(self) -> None:
        if hasattr(self.learn, "lr_finder") or hasattr(self.learn, "gather_preds"):
            self.run = False
            return
        optimizer = getattr(self.learn.opt, "opt", None)
        if not isinstance(optimizer, OnePass):
            raise TypeError(
                "StepRecorder needs GradOps among the learner's callbacks, or an opt_func of gradops.fastai, Adam say"
            )
        self.after_fit()  # of a fit that was interrupted
        self.recorder = gradops.Recorder(optimizer, self.learn.model, **self.options)

    def before_backward(self) -> None:
        assert self.recorder is not None
        self.recorder.loss(self.learn.loss)

    def after_fit(self) -> None:
        if self.recorder is not None:
            self.recorder.close()


def _refuse(callbacks: Any, kinds: tuple[type, ...]) -> None:
    for callback in callbacks:
        if isinstance(callback, kinds):
            raise ValueError(f"GradOps does what {type(callback).__name__} does: remove that callback from the learner")


def _drop_scaled_gradients(optimizer: OnePass) -> None:
    """Forgets gradients of a fit that ended between backward and step, since the next fit may have another scale."""
    if optimizer.engine.scaling.scaled:
        optimizer.zero_grad()
        optimizer.engine.scaling.forget()


def _upgrade(learn: Any) -> None:
    """Makes the learner's optimizer one that takes the one pass, and names its parameters after the model's."""
    if isinstance(learn.opt, fastai_optimizer.Optimizer):
        _replace_fastais(learn)
    if not isinstance(learn.opt.opt, OnePass):
        name_params(learn.opt.opt, learn.model)
        gradops.wrap(learn.opt.opt)
    elif name_params(learn.opt.opt, learn.model):
        learn.opt.opt.engine.rebind()


def _replace_fastais(learn: Any) -> None:
    """Puts ours in the place of fastai's, which is no torch optimizer; hyper-parameters and state move over."""
    made_by = learn.opt_func
    func, keywords = (made_by.func, made_by.keywords) if isinstance(made_by, partial) else (made_by, {})
    if func not in _OURS:
        raise TypeError(
            "GradOps takes learners whose opt_func is fastai's Adam or SGD, one of gradops.fastai, or an OptimWrapper "
            f"of one of {TAKEN}, got {made_by}"
        )
    old, learn.opt_func = learn.opt, partial(_OURS[func], **keywords)
    try:
        learn.create_opt()
    except Exception:
        learn.opt_func = made_by
        raise
    learn.opt.frozen_idx = old.frozen_idx
    learn.opt.load_state_dict(old.state_dict())


def _fastais_sgd(
    params: Any, lr: float | slice, mom: float = 0.0, wd: float = 0.0, decouple_wd: bool = True
) -> Optimizer:
    """fastai's `SGD`, with its arguments and defaults."""
    if mom != 0 and decouple_wd:
        raise ValueError(
            "fastai's SGD with momentum keeps weight decay out of it, which gradops.SGD cannot: write "
            f"opt_func=partial(SGD, mom={mom:g}, decouple_wd=False)"
        )
    return of_class(gradops.SGD, params, lr, mom=mom, wd=wd)  # without momentum both decays are the same


_OURS: dict[Any, Callable[..., Optimizer]] = {fastai_optimizer.Adam: Adam, fastai_optimizer.SGD: _fastais_sgd}
