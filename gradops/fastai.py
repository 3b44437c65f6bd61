"""fastai: `GradOps`, one callback in place of MixedPrecision and GradientClip, and `Adam`, an opt_func."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

import gradops
from gradops._frameworks import needs
from gradops.one_pass import OnePass
from gradops.param_groups import params_of
from gradops.settings import Settings

with needs("fastai"):
    from fastai import optimizer as fastai_optimizer
    from fastai.callback.core import Callback, CancelStepException
    from fastai.callback.fp16 import MixedPrecision, NonNativeMixedPrecision
    from fastai.callback.training import GradientClip
    from fastai.optimizer import OptimWrapper, set_item_pg
    from fastai.torch_core import to_float

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Read at each step, so that a fit can set and restore them; a backend is chosen once, when an optimizer is made.
_FIXED = ("backend",)


class GradOps(Callback):
    """Mixed precision, loss scale, clipping and the step in one pass, in place of MixedPrecision and GradientClip.

    The learner's optimizer may be made by fastai's `Adam` (the default), by `gradops.fastai.Adam`, or by an
    `OptimWrapper` of torch.optim.Adam or AdamW; the first fit upgrades it, with the state that it has. Settings hold
    while a fit runs. After a step that an inf or NaN made the optimizer skip, the event `after_cancel_step` runs. It is
    known by reading one number from the device after each step, as fastai itself does for the loss.

    Args:
        precision: "fp32", "bf16" or "fp16": what autocast makes of the model's forward, on any device. The
            predictions that the loss function sees are float32.
        **settings: those of `gradops.wrap`. "fp16" takes `loss_scale="dynamic"` if none is given.

    Raises:
        ValueError, TypeError: `precision` or a setting is out of its range.
    """

    order = MixedPrecision.order

    def __init__(self, precision: str = "fp32", **settings: Any) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        for name in _FIXED:
            if name in settings:
                raise TypeError(f"{name} is an argument of gradops.fastai.Adam, not of GradOps")
        self.precision = precision
        self.settings = {"loss_scale": "dynamic", **settings} if precision == "fp16" else settings
        Settings(**self.settings).checked()
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
        for name, value in self.settings.items():
            self.undo.callback(setattr, optimizer, name, getattr(optimizer, name))
            setattr(optimizer, name, value)
        # Now, lest a checkpoint taken before the first batch (lr_find takes one) hold the scale of another policy.
        optimizer._follow_policy()
        self.undo.callback(_drop_scaled_gradients, optimizer)

    def _cancel_if_skipped(self, optimizer: OnePass, *_: Any) -> None:
        before, self.steps_skipped = self.steps_skipped, int(optimizer.stats.steps_skipped)
        if self.steps_skipped > before:
            raise CancelStepException


def Adam(  # noqa: N802  # fastai's name for it
    params: Any,
    lr: float | slice,
    mom: float = 0.9,
    sqr_mom: float = 0.99,
    eps: float = 1e-5,
    wd: float = 0.01,
    decouple_wd: bool = True,
    **settings: Any,
) -> "Optimizer":
    """fastai's `Adam` in one pass, for a Learner's `opt_func`: the same arguments and defaults.

    Args:
        params: parameters or lists of them, as the learner's splitter makes them.
        lr, mom, sqr_mom, eps, wd: fastai's names for lr, both betas, eps and weight_decay.
        decouple_wd: AdamW's weight decay, else Adam's L2.
        **settings: those of `gradops.wrap`.
    """
    made_by = partial(
        gradops.AdamW if decouple_wd else gradops.Adam,
        lr=lr.stop if isinstance(lr, slice) else lr,  # the learner spreads a slice over the groups itself
        betas=(mom, sqr_mom),
        eps=eps,
        weight_decay=wd,
        **settings,
    )
    return Optimizer(params, made_by)


class Optimizer(OptimWrapper):
    """fastai's view of a gradops optimizer, in which a Learner's `wd_bn_bias=False` holds.

    The learner marks parameters of norms, and biases, to go without weight decay, which an OptimWrapper ignores. Here
    they stand in groups of their own, behind the groups that fastai sees.
    """

    def __init__(self, params: Any, opt: Any) -> None:
        super().__init__(params, opt)
        self.groups_seen = len(self.opt.param_groups)
        self.undecayed: dict[int, int] | None = None  # group that fastai sees: group of its marked parameters

    @property
    def hypers(self) -> list[dict[str, Any]]:
        return super().hypers[: self.groups_seen]

    @property
    def param_lists(self) -> list[list[torch.Tensor]]:
        groups = [group["params"] for group in self.opt.param_groups]
        marked = self.undecayed or {}
        return [groups[i] + (groups[marked[i]] if i in marked else []) for i in range(self.groups_seen)]

    def _set_hyper(self, k: str, v: Any) -> None:
        super()._set_hyper(k, v)
        self._part_undecayed()
        for seen, marked in (self.undecayed or {}).items():
            if k != "wd":
                set_item_pg(self.opt.param_groups[marked], self.bwd_map[k], v[seen])

    def step(self, closure: Any = None) -> Any:
        self._part_undecayed()
        return self.opt.step(closure)

    def state_dict(self) -> dict[str, Any]:
        self._part_undecayed()
        return self.opt.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._part_undecayed()
        self.opt.load_state_dict(state_dict)

    def _part_undecayed(self) -> None:
        """Gives the marked parameters their groups; once, and not before the learner has marked any."""
        if self.undecayed is not None or not self.state:
            return
        self.undecayed = {}
        for seen, group in enumerate(list(self.opt.param_groups)):
            marked = [param for param in group["params"] if not self.state[param].get("do_wd", True)]
            if not marked:
                continue
            group["params"] = [param for param in group["params"] if self.state[param].get("do_wd", True)]
            options = {key: value for key, value in group.items() if not key.startswith("gradops_")}
            self.undecayed[seen] = len(self.opt.param_groups)
            self.opt.add_param_group({**options, "params": marked, "weight_decay": 0.0})


def _refuse(callbacks: Any, kinds: tuple[type, ...]) -> None:
    for callback in callbacks:
        if isinstance(callback, kinds):
            raise ValueError(f"GradOps does what {type(callback).__name__} does: remove that callback from the learner")


def _drop_scaled_gradients(optimizer: OnePass) -> None:
    """Forgets gradients of a fit that ended between backward and step, since the next fit may have another scale."""
    if optimizer._scaled:
        optimizer.zero_grad()
        optimizer._scaled, optimizer._unscaled = False, None


def _upgrade(learn: Any) -> None:
    """Makes the learner's optimizer one that takes the one pass, and names its parameters after the model's."""
    if isinstance(learn.opt, fastai_optimizer.Optimizer):
        _replace_fastais_adam(learn)
    if not isinstance(learn.opt.opt, OnePass):
        _name_params(learn.opt.opt, learn.model)
        gradops.wrap(learn.opt.opt)
    elif _name_params(learn.opt.opt, learn.model):
        learn.opt.opt._bind()


def _name_params(optimizer: torch.optim.Optimizer, model: nn.Module) -> bool:
    """Puts the model's names for the parameters where `stats.names` takes them from; returns whether it did."""
    names = {param: name for name, param in model.named_parameters()}
    if any("param_names" in group for group in optimizer.param_groups):
        return False
    if any(param not in names for param in params_of(optimizer.param_groups)):
        return False
    for group in optimizer.param_groups:
        group["param_names"] = [names[param] for param in group["params"]]
    return True


def _replace_fastais_adam(learn: Any) -> None:
    """Puts `Adam` in the place of fastai's, which is no torch optimizer; hyper-parameters and state move over."""
    made_by = learn.opt_func
    func, keywords = (made_by.func, made_by.keywords) if isinstance(made_by, partial) else (made_by, {})
    if func is not fastai_optimizer.Adam:
        raise TypeError(
            "GradOps takes learners whose opt_func is fastai's Adam, gradops.fastai.Adam, or an OptimWrapper of "
            f"torch.optim.Adam or AdamW, got {made_by}"
        )
    old, learn.opt_func = learn.opt, partial(Adam, **keywords)
    learn.create_opt()
    learn.opt.frozen_idx = old.frozen_idx
    for name in ("lr", "mom", "sqr_mom", "eps", "wd"):
        learn.opt.set_hyper(name, [hyper[name] for hyper in old.hypers])
    for param, _, state, _ in old.all_params():
        if "step" in state:
            learn.opt.opt.state[param] = {
                "step": torch.tensor(float(state["step"])),
                "exp_avg": state["grad_avg"].float(),
                "exp_avg_sq": state["sqr_avg"].float(),
            }
