"""The optimizer's Python side: everything between `loss.backward()` and the next forward as one call."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradops.backends.torch.ops import operators_for
from gradops.distributed.zero import check_builder
from gradops.one_pass import checkpoint
from gradops.one_pass.attributes import check_attribute, described
from gradops.one_pass.engine import Engine
from gradops.one_pass.groups import check_groups, local_grads
from gradops.one_pass.hooks import hooked_step
from gradops.one_pass.known_optimizers import remember, settings_of_groups
from gradops.one_pass.loss_scaling import OUT_OF_ORDER, STALE_UNSCALE
from gradops.one_pass.state import drop_unused_states
from gradops.policies.protect import Protect, protect_setting, protected
from gradops.settings import SETTINGS, Settings, SettingsAttributes, settings_of
from gradops.stats import StepStats
from gradops.update_rule import UpdateRule


class OnePass(SettingsAttributes, torch.optim.Optimizer):
    """What gradops's optimizers add to torch's classes.

    The settings (the fields of `gradops.settings.Settings`) are plain attributes, read at each step; see `gradops.wrap`
    for what they mean.

    Attributes:
        engine: carries out the steps, and calls those who watch them.
        rule: what a step does to one element.
    """

    engine: Engine
    rule: ClassVar[UpdateRule]

    # On the class: an instance's attribute would be lost in deepcopy and pickle.
    _step_supports_amp_scaling = True

    # A GradScaler sets both around step().
    grad_scale: Tensor | None
    found_inf: Tensor

    def __init__(self, params: Any, *args: Any, **keywords: Any) -> None:
        given = {name: keywords.pop(name) for name in SETTINGS if name in keywords}
        if isinstance(params, Iterator):
            params = list(params)
        settings = Settings(**{**settings_of_groups(params, given), **given})
        settings.checked(self.rule)
        check_builder()
        super().__init__(params, *args, **keywords)
        check_groups(self.param_groups, settings, self.rule)
        self._setup(settings)

    def _setup(self, settings: Settings) -> None:
        """Takes the settings; the groups have been checked."""
        settings.checked(self.rule)
        self.engine = Engine(self)
        for name in SETTINGS:
            setattr(self, name, getattr(settings, name))
        remember(self)
        saved = checkpoint.saved_scalars(self.param_groups[0])
        self.engine.rebind()
        drop_unused_states(self.state)
        checkpoint.widen_moments(self.state)
        self.engine.scaling.follow(self.loss_scale)
        checkpoint.restore_scalars(self.engine, saved)
        checkpoint.publish(self.engine)

    def __setattr__(self, name: str, value: Any) -> None:
        check_attribute(self, name, value)
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        engine = self.__dict__.get("engine")
        if engine is None or engine.choice is None:
            return super().__repr__()  # in the making
        return described(self, engine.choice, engine.buffers.stats.backend)

    @property
    def protect(self) -> Protect:
        """The modules whose buffers go back where a step is skipped; setting it keeps what they are then."""
        return self.__dict__["protect"]

    @protect.setter
    def protect(self, value: Protect) -> None:
        setting = protect_setting(value)
        self.engine.protected = protected(setting)
        self.__dict__["protect"] = setting

    @property
    def stats(self) -> StepStats:
        """What the last step measured, in live buffers; `stats.clone()` keeps a copy."""
        return self.engine.buffers.stats

    @hooked_step
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Unscales, checks, measures, clips and updates in one pass, and moves the loss scale.

        A step in which an inf or NaN is found leaves parameters, moments and step counts bit for bit as they were; the
        model's buffers, which the forward has changed (BatchNorm's running statistics), go back with `protect`. A step
        in which no parameter has a gradient changes nothing. `param.grad` is left as backward made it.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What `closure` returned, else None.

        Raises:
            RuntimeError: a gradient does not fit its parameter; `loss_scale` is set but no loss was scaled; or two loss
                scalers are at work. Nothing has changed then.
            ValueError: a setting is out of its range. Nothing has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        engine = self.engine
        once, engine.once = engine.once, None
        if engine.step() if once is None else once(engine.step):
            for watcher in engine.watchers:
                watcher.after_step(loss)
        return loss

    @torch._disable_dynamo
    def scale(self, outputs: Any) -> Any:
        """Multiplies a loss, or an iterable of losses, by the loss scale; returned unchanged without one.

        Args:
            outputs: a tensor or a (nested) list or tuple of tensors.

        Returns:
            The same structure, scaled. The scale is a float32 scalar on the device, never synchronised.

        Raises:
            RuntimeError: `unscale_` was called since the last step.
        """
        if self.loss_scale is None:
            return outputs
        scaling = self.engine.scaling
        if scaling.unscaled is not None:
            raise RuntimeError(STALE_UNSCALE)
        if not scaling.scaled:
            self.engine.prepare()
            scaling.follow(self.loss_scale)
        return scaling.scale(outputs)

    @torch._disable_dynamo
    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """`self.scale(loss).backward(**kwargs)`: the line that replaces `loss.backward()`."""
        for watcher in self.engine.watchers:
            watcher.loss(loss)
        scaling = self.engine.scaling
        before = scaling.scaled
        try:
            self.scale(loss).backward(**kwargs)
        except BaseException:
            scaling.scaled = before  # or a step after an unscaled backward would divide by the scale
            raise

    @torch.no_grad()
    def unscale_(self) -> None:
        """Divides the gradients by the loss scale in place, for code that reads or edits them before the step.

        The step then does not unscale again. An inf or NaN seen here makes the step skip even if it is edited away, as
        with torch.amp.GradScaler. Without a loss scale there is nothing to do.

        Raises:
            RuntimeError: no loss was scaled since the last step, the gradients are unscaled already, or a gradient does
                not fit its parameter.
        """
        if self.loss_scale is None:
            return
        engine = self.engine
        if not engine.scaling.scaled:
            raise RuntimeError(OUT_OF_ORDER)
        if engine.scaling.unscaled is not None:
            raise RuntimeError("unscale_() has already been called since the last step()")
        engine.check_grads()
        grads = local_grads(self.param_groups)
        engine.scaling.unscaled = operators_for(grads).unscale_(grads, engine.buffers.current_scale)

    def refresh_(self) -> None:
        """Reads the parameters anew, after edits through `.data`, and the buffers that are protected, after any edit.

        For parameters it matters with `max_relative_step`, `master_weights` and `rounding`. Edits that autograd counts
        (`with torch.no_grad(): param.mul_(2)`, `load_state_dict`) are noticed without it. For the buffers of `protect`,
        call it after every change between steps other than `load_state_dict`: forwards that recalibrate BatchNorm,
        `reset_running_stats`. A skipped step would undo such a change.
        """
        self.engine.refresh()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the new parameters must be ones that the one pass can step."""
        own = set(param_group)
        super().add_param_group(param_group)
        for name in set(SETTINGS) - own:
            param_group.pop(name, None)  # the defaults have the settings, which are of no group
        if not hasattr(self, "engine"):
            return  # torch's constructor adds the first groups; _setup follows
        try:
            check_groups(self.param_groups, settings_of(self), self.rule)
        except (RuntimeError, ValueError):
            self.param_groups.pop()
            raise
        self.engine.rebind()

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict; scale, counters and guard are `gradops_*` scalars in its first group. Synchronises.

        As in torch's, its tensors are the live ones, step counts included: copy it (`copy.deepcopy`) to keep it while
        training goes on.
        """
        self.engine.check_weights("state_dict()")
        checkpoint.publish(self.engine)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, for state dicts of gradops and of plain torch; moments stay float32, or float64 where the
        parameter is.

        The settings given to the constructor or to `wrap` stay; a dynamic loss scale, the counters and what a guard
        knows are restored, or begin anew where the state dict has none of them.

        Raises:
            TypeError: the loss scale or a count is no number. Nothing has changed then, nor after the next.
            ValueError: the loss scale is NaN, a count not finite, or the state that of another kind of optimizer.
        """
        self.engine.check_weights("load_state_dict()")
        for group in state_dict["param_groups"][:1]:
            checkpoint.saved_scalars(group)
        final: dict[str, Any] = {}

        def begin(_: Any, loaded: dict[str, Any]) -> None:
            checkpoint.check_kind(self.rule, loaded)
            final.update(loaded)

        handles = [
            self.register_load_state_dict_pre_hook(begin),
            self.register_load_state_dict_post_hook(lambda _: checkpoint.restore_values(self, final), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()
        engine = self.engine
        checkpoint.restore_scalars(engine, checkpoint.saved_scalars(self.param_groups[0]))
        engine.scaling.forget()
        engine.refresh()
        checkpoint.publish(engine)
        for watcher in engine.watchers:
            watcher.after_load()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_gradops": checkpoint.pickled(self.engine)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        saved = state.get("_gradops")
        super().__setstate__({key: value for key, value in state.items() if key != "_gradops"})
        if saved is None:
            return  # torch's load_state_dict comes this way too
        self._setup(saved["settings"])
        checkpoint.unpickle(self.engine, saved)
