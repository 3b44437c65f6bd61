"""The optimizer's Python side: everything between `loss.backward()` and the next forward as one call."""

from collections.abc import Callable, Iterator, MutableMapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from gradops.backends import choose
from gradops.distributed.shards import full_tensor
from gradops.distributed.zero import check_builder
from gradops.one_pass.checkpoint import Checkpointed, saved_scalars
from gradops.one_pass.groups import check_groups, check_taking_part, choose_backend, param_names, params_of
from gradops.one_pass.hooks import hooked_step
from gradops.one_pass.known_optimizers import remember, settings_of_groups
from gradops.one_pass.state import fit_state, zero_state
from gradops.one_pass.stuck import LOOK_EVERY, Progress
from gradops.policies.protect import Protect, protect_setting, protected
from gradops.settings import SETTINGS, Settings
from gradops.stats import StepBuffers, StepStats
from gradops.torch_before_2_7 import name_decay_before_2_7

_settings_of = attrgetter(*SETTINGS)


class OnePass(Checkpointed):
    """What `gradops.Adam` and `gradops.AdamW` add to torch's classes.

    The settings (the fields of `gradops.settings.Settings`) are plain attributes, read at each step; see `gradops.wrap`
    for what they mean.
    """

    # On the class: an instance's attribute would be lost in deepcopy and pickle.
    _step_supports_amp_scaling = True

    # Attributes besides the settings, for unwrap to remove.
    RUNTIME = (
        "_settings_key",
        "_prepared",
        "_buffers",
        "_plan",
        "_choice",
        "_scale_policy",
        "_loaded_scale",
        "_scaled",
        "_unscaled",
        "_watchers",
        "_fitted",
        "_protected",
        "_calls",
        "_progress",
    )

    def __init__(self, params: Any, *args: Any, **keywords: Any) -> None:
        given = {name: keywords.pop(name) for name in SETTINGS if name in keywords}
        if isinstance(params, Iterator):
            params = list(params)
        settings = Settings(**{**settings_of_groups(params, given), **given})
        settings.checked()
        check_builder()
        super().__init__(params, *args, **keywords)
        check_groups(self.param_groups, settings)
        self._setup(settings)

    def _setup(self, settings: Settings) -> None:
        """Takes the settings; the groups have been checked."""
        settings.checked()
        for name in SETTINGS:
            setattr(self, name, getattr(settings, name))
        remember(self)
        saved = saved_scalars(self.param_groups[0])
        self._settings_key: tuple[Any, ...] | None = None
        self._buffers = StepBuffers()
        self._scale_policy = None
        self._scaled = False
        self._unscaled = None
        self._choice: choose.Choice | None = None
        self._fitted: Any = None
        self._calls, self._progress = 0, Progress()
        self._bind()
        self._widen_moments()
        self._follow_policy()
        self._restore_scalars(saved)
        self._publish()

    @property
    def protect(self) -> Protect:
        """The modules whose buffers go back where a step is skipped; what they are when this is set is kept first."""
        return self.__dict__["protect"]

    @protect.setter
    def protect(self, value: Protect) -> None:
        setting = protect_setting(value)
        self._protected = protected(setting)
        self.__dict__["protect"] = setting

    @property
    def stats(self) -> StepStats:
        """What the last step measured, in live buffers; `stats.clone()` keeps a copy."""
        return self._buffers.stats

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
        settings = self._plan_settings()
        if not self.state and self._is_ghost_step():
            self._link()
            return loss
        scaling = self._scaling()
        before = self._counted()
        if not self._plan.step(self.param_groups, self.state, settings, *scaling):
            self._link()
            before = self._counted()
            if not self._plan.step(self.param_groups, self.state, self._plan_settings(), *scaling):
                raise RuntimeError("the optimizer's groups or state change while it steps")
            self._buffers.set_backend(self._plan.description())
        if self._scaled or self._unscaled is not None:
            self._scaled, self._unscaled = False, None
        if self._protected is not None and before is not None:
            self._protected.after_step(before, self._buffers.steps)
        for watcher in self._watchers:
            watcher.after_step(loss)
        self.__dict__["_calls"] += 1  # past __setattr__, which looks for misspelt settings and costs more
        if not self._calls % LOOK_EVERY:
            self._look()
        return loss

    def refresh_(self) -> None:
        """Reads the parameters anew, after edits through `.data`, and the buffers that are protected, after any edit.

        For parameters it matters with `max_relative_step`, `master_weights` and `rounding`. Edits that autograd counts
        (`with torch.no_grad(): param.mul_(2)`, `load_state_dict`) are noticed without it. For the buffers of `protect`,
        call it after everything but a `load_state_dict` that changes them between steps: forwards that recalibrate
        BatchNorm, `reset_running_stats`. A skipped step would take that back.
        """
        self._plan.refresh()
        if self._protected is not None:
            self._protected.keep()

    def _look(self) -> None:
        """Warns of a training that stands still, where reading the counters waits for nothing.

        Elsewhere a recorder sees it, which reads them without waiting; and saving, which waits anyway.
        """
        if not self._watchers and self._buffers.steps.device.type == "cpu":
            self._progress = self._progress.seen(self._calls, *self._buffers.steps.tolist())

    def _counted(self) -> Tensor | None:
        """The steps so far, taken and skipped, for what must know which of them this step is."""
        return None if self._protected is None else self._buffers.steps.clone()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the new parameters must be ones that the one pass can step."""
        own = set(param_group)
        super().add_param_group(param_group)
        for name in set(SETTINGS) - own:
            param_group.pop(name, None)  # the defaults have the settings, which are of no group
        if not hasattr(self, "_plan"):
            return  # torch's constructor adds the first groups; _setup follows
        try:
            check_groups(self.param_groups, Settings(*_settings_of(self)))
        except (RuntimeError, ValueError):
            self.param_groups.pop()
            raise
        self._bind()

    def _plan_settings(self) -> Any:
        """What the attributes say, as the plan takes it; a plan for another backend is made here."""
        values = _settings_of(self)
        if values != self._settings_key:
            settings = Settings(*values).checked()
            self._bind()
            self._prepared = self._plan.prepare(settings)
            self._settings_key = values
            self.defaults.update(zip(SETTINGS, values, strict=True))
            if settings.of_state != self._fitted:
                self._fit_states()
        return self._prepared

    @torch.no_grad()
    def _fit_states(self) -> None:
        """Makes every state what the settings want; the plan then sees by its entries that it is another."""
        settings = Settings(*_settings_of(self))
        for param, name in zip(params_of(self.param_groups), param_names(self.param_groups), strict=True):
            state = self.state.get(param)
            if state is not None and not isinstance(state, MutableMapping):
                got = type(state).__name__
                raise TypeError(f"gradops: the state of '{name}' must be a dict or another mapping, got {got}")
            if state:
                fit_state(state, param, settings)
        self._fitted = settings.of_state

    def _bind(self) -> None:
        """Gives the plan the groups as they are now."""
        name_decay_before_2_7(self, self.param_groups)
        choice = choose_backend(self.param_groups, self.backend)
        names = param_names(self.param_groups)
        if choice != self._choice:
            self._plan, self._choice, self._settings_key = choose.make_plan(choice), choice, None
        self._buffers.resize(names, choice.device)
        self._plan.bind_params(self.param_groups, names, self._buffers)

    def _is_ghost_step(self) -> bool:
        """Whether torch's distributed checkpoint only wants the state created: lr 0 everywhere and zero gradients."""
        if any(float(group["lr"]) != 0.0 for group in self.param_groups):
            return False
        grads = [param.grad for param in params_of(self.param_groups) if param.grad is not None]
        return bool(grads) and not any(full_tensor(grad.any()) for grad in grads)

    @torch.no_grad()
    def _link(self) -> None:
        """Binds the plan to the groups and the state as they are now, and creates the state that is missing."""
        settings = Settings(*_settings_of(self))
        self._bind()
        if self._choice is not None:
            choose.advise(self._choice)
        check_taking_part(self.param_groups, settings)
        self._plan.params_without_state()  # raises for a gradient that does not fit, before any state is made
        params = [(param, group) for group in self.param_groups for param in group["params"]]
        self._gather_steps()
        self._fit_states()
        self._plan.bind_state(self.state)
        for index in self._plan.params_without_state():
            param, group = params[index]
            # Not self.state[param], which only torch's own defaultdict makes.
            state = self.state.get(param) or self.state.setdefault(param, {})
            state.update(zero_state(param, group["amsgrad"], settings))
            fit_state(state, param, settings)
        self._gather_steps()
        self._plan.bind_state(self.state)

    def _gather_steps(self) -> None:
        """Makes every step counter a 0-d view of one buffer on the parameters' device, without waiting for it.

        Counters in memory that processes share stay where they are, or the others would not see them move.
        """
        device = self._buffers.scalars.device
        # torch lets users keep what they like beside the parameters' states.
        states = [state for state in self.state.values() if isinstance(state, MutableMapping)]
        states = [state for state in states if state.get("step") is not None]
        states = [state for state in states if not _shared_counter(state["step"], device)]
        if not states:
            return
        base, *others = (getattr(state["step"], "_base", None) for state in states)
        if base is not None and base.device == device and all(other is base for other in others):
            return
        steps = [torch.as_tensor(state["step"], dtype=torch.float32, device=device).reshape(()) for state in states]
        for state, view in zip(states, torch.stack(steps).unbind(), strict=True):
            state["step"] = view


def _shared_counter(step: Any, device: torch.device) -> bool:
    """Whether other processes may count with this tensor, and the step can, too."""
    if not isinstance(step, Tensor) or device.type != "cpu":  # CUDA tensors all say that they are shared
        return False
    return step.device == device and step.dtype == torch.float32 and step.numel() == 1 and step.is_shared()
