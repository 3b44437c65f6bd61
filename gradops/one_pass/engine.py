"""What carries out an optimizer's steps: a plan for the backend that was chosen, its buffers, and the loss scale."""

import weakref
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradops.backends import choose
from gradops.backends.call import Plan
from gradops.distributed.shards import full_tensor
from gradops.one_pass.agreement import check_agreement
from gradops.one_pass.ema_buffers import average_buffers, count_of_average, fit_ema_buffers
from gradops.one_pass.groups import check_taking_part, choose_backend, param_names, params_of
from gradops.one_pass.loss_scaling import LossScaling
from gradops.one_pass.rewritten import Rewrites, watch_rewrites
from gradops.one_pass.state import fit_state, gather_numbers, start_state
from gradops.one_pass.stuck import LOOK_EVERY, Progress
from gradops.one_pass.watcher import StepWatcher
from gradops.policies.protect import Protected
from gradops.settings import SETTINGS, Settings, settings_of, values_of
from gradops.stats import StepBuffers
from gradops.torch_before_2_7 import name_decay_before_2_7

if TYPE_CHECKING:
    from gradops.one_pass.one_pass import OnePass


class Engine:
    """Carries out the steps of one optimizer, of which it keeps no more than a weak reference.

    Attributes:
        buffers: what steps write: statistics, counters, the guard and the loss scale.
        scaling: the loss scale's policy, and whether the gradients carry the scale.
        plan: walks the parameters and steps them.
        choice: the backend and why; None until groups are bound.
        protected: the buffers of modules that a skipped step puts back.
        watchers: who is called after steps; see `watch`.
        calls: of `step`.
        progress: when a step was last seen to be taken.
        rewrites: whether the gradients of all steps so far were rewritten after backward; None once some were not.
        averaged: whether the averages are in the parameters' places, inside `gradops.ema_weights`.
        once: given this `step`, carries out the optimizer's next one, and only that; for a clipping that was asked for
            before it.
    """

    def __init__(self, optimizer: "OnePass") -> None:
        self._optimizer = weakref.ref(optimizer)
        self.buffers = StepBuffers()
        self.scaling = LossScaling(self.buffers)
        self.plan: Plan
        self.choice: choose.Choice | None = None
        self.protected: Protected | None = None
        self.watchers: tuple[StepWatcher, ...] = ()
        self.calls, self.progress = 0, Progress()
        self.rewrites: Rewrites | None = None
        self.averaged = False
        self.once: Callable[[Callable[[], bool]], bool] | None = None
        self._prepared_for: tuple[Any, ...] | None = None
        self._prepared: Any = None
        self._fitted_for: Any = None
        self._late_moments_fitted: list[list[bool]] = []

    @property
    def optimizer(self) -> "OnePass":
        """Whose steps these are."""
        optimizer = self._optimizer()
        assert optimizer is not None, "the optimizer has its engine, and so outlives its methods"
        return optimizer

    def watch(self, watcher: StepWatcher) -> None:
        """From now on `watcher` is called for losses, steps and loads. A copy of the optimizer is not watched."""
        self.watchers = (*self.watchers, watcher)

    def unwatch(self, watcher: StepWatcher) -> None:
        """Undoes `watch`; one that does not watch is no error."""
        self.watchers = tuple(other for other in self.watchers if other is not watcher)

    def rebind(self) -> None:
        """Takes the groups as they are now: after code has moved parameters between them, or renamed them.

        A step notices by itself when parameters, gradients or state are others; it does not look at names.

        Raises:
            RuntimeError: a parameter cannot be stepped; the message names it and says why.
        """
        optimizer = self.optimizer
        name_decay_before_2_7(optimizer)
        choice = choose_backend(optimizer.param_groups, optimizer.rule, optimizer.backend)
        names = param_names(optimizer.param_groups)
        if choice != self.choice:
            self.plan, self.choice, self._prepared_for = choose.make_plan(choice, optimizer.rule), choice, None
        self.buffers.resize(names, choice.device)
        self.plan.bind_params(optimizer.param_groups, names, self.buffers)

    def prepare(self) -> Any:
        """What the settings say now, as the plan takes it; a plan for another backend is made here.

        Raises:
            ValueError: a setting is out of its range.
        """
        optimizer = self.optimizer
        values = values_of(optimizer)
        if values != self._prepared_for:
            settings = settings_of(optimizer).checked(optimizer.rule)
            check_taking_part(optimizer.param_groups, settings)
            self.rebind()
            self._prepared = self.plan.prepare(settings)
            self._prepared_for = values
            optimizer.defaults.update(zip(SETTINGS, values, strict=True))
            if settings.of_state != self._fitted_for:
                self._fit_states(settings)
        if self._late_moments() != self._late_moments_fitted:
            self._fit_states(settings_of(optimizer))
        return self._prepared

    def step(self) -> bool:
        """One step. False for the ghost step of torch's distributed checkpoint, which only creates the state."""
        optimizer = self.optimizer
        self.check_weights("step()")
        settings = self.prepare()
        if not optimizer.state and _is_ghost_step(optimizer):
            self._link()
            return False
        if not self.calls:
            check_agreement(optimizer)
        scaling = self.scaling.of_step(optimizer)
        before = self._counted()
        if not self.plan.step(optimizer.param_groups, optimizer.state, settings, *scaling):
            self._link()
            before = self._counted()
            if not self.plan.step(optimizer.param_groups, optimizer.state, self.prepare(), *scaling):
                raise RuntimeError("the optimizer's groups or state change while it steps")
            self.buffers.set_backend(self.plan.description())
        self.scaling.forget()
        self._after_step(*before)
        if self.rewrites is not None:
            self.rewrites = self.rewrites.after_step() if optimizer.max_norm is None else None
        elif not self.calls:
            self.rewrites = watch_rewrites(optimizer)
        self.calls += 1
        if not self.calls % LOOK_EVERY and self.buffers.steps.device.type == "cpu":
            self.look()
        return True

    def look(self) -> None:
        """Warns of a training that stands still; waits for the device, and so only saving calls it on a GPU.

        With a recorder, that looks, and waits for nothing.
        """
        if not self.watchers:
            self.progress = self.progress.seen(self.calls, *self.buffers.steps.tolist())

    def refresh(self) -> None:
        """Reads parameters and protected buffers anew."""
        self.plan.refresh()
        if self.protected is not None:
            self.protected.keep()

    def check_grads(self) -> None:
        """Raises RuntimeError for a gradient that does not fit its parameter, before anything is done to one."""
        self.rebind()
        self.plan.params_without_state()

    def check_weights(self, what: str) -> None:
        """Raises RuntimeError inside `gradops.ema_weights`, where the averages are in the parameters' places."""
        if self.averaged:
            raise RuntimeError(f"{what} inside gradops.ema_weights, whose block has the averages for parameters")

    def _counted(self) -> tuple[Tensor | None, Tensor | None]:
        """The steps so far, taken and skipped, and the updates, for those who must know whether this one is skipped."""
        steps = None if self.protected is None else self.buffers.steps.clone()
        return steps, count_of_average(self.optimizer)

    def _after_step(self, steps: Tensor | None, updates: Tensor | None) -> None:
        """Does to the model's buffers what the step was for them; takes what `_counted` gave before it."""
        if self.protected is not None and steps is not None:
            self.protected.after_step(steps, self.buffers.steps)
        if updates is not None:
            average_buffers(self.optimizer, updates)

    @torch.no_grad()
    def _link(self) -> None:
        """Binds the plan to the groups and the state as they are now, and creates the state that is missing."""
        optimizer, settings = self.optimizer, settings_of(self.optimizer)
        groups, states = optimizer.param_groups, optimizer.state
        self.rebind()
        if self.choice is not None:
            choose.advise(self.choice)
        check_taking_part(groups, settings)
        self.plan.params_without_state()  # raises for a gradient that does not fit, before any state is made
        gather_numbers(states, optimizer.rule, self.buffers.scalars.device)
        self._fit_states(settings)
        self.plan.bind_state(states)
        params = [(param, group) for group in groups for param in group["params"]]
        for index in self.plan.params_without_state():
            param, group = params[index]
            # Not states[param], which only torch's own defaultdict makes.
            state = states.get(param) or states.setdefault(param, {})
            state.update(
                start_state(param, optimizer.rule, optimizer.rule.starts_of(group, optimizer.defaults), settings)
            )
            fit_state(state, param, optimizer.rule, group, settings)
        fit_ema_buffers(optimizer, self.buffers.scalars.device)
        gather_numbers(states, optimizer.rule, self.buffers.scalars.device)
        self.plan.bind_state(states)

    @torch.no_grad()
    def _fit_states(self, settings: Settings) -> None:
        """Makes every state what the settings want; the plan then sees by its entries that it is another."""
        optimizer = self.optimizer
        names = param_names(optimizer.param_groups)
        params = [(param, group) for group in optimizer.param_groups for param in group["params"]]
        for (param, group), name in zip(params, names, strict=True):
            state = optimizer.state.get(param)
            if state is not None and not isinstance(state, MutableMapping):
                got = type(state).__name__
                raise TypeError(f"gradops: the state of '{name}' must be a dict or another mapping, got {got}")
            if state:
                fit_state(state, param, optimizer.rule, group, settings)
        fit_ema_buffers(optimizer, self.buffers.scalars.device)
        self._fitted_for, self._late_moments_fitted = settings.of_state, self._late_moments()

    def _late_moments(self) -> list[list[bool]]:
        """Of every group, which of the moments that may come late it uses now."""
        optimizer = self.optimizer
        late = optimizer.rule.late_moments
        return [[moment.used(group) for moment in late] for group in optimizer.param_groups] if late else []


def _is_ghost_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch's distributed checkpoint only wants the state created: lr 0 everywhere and zero gradients."""
    if any(float(group["lr"]) != 0.0 for group in optimizer.param_groups):
        return False
    grads = [param.grad for param in params_of(optimizer.param_groups) if param.grad is not None]
    return bool(grads) and not any(full_tensor(grad.any()) for grad in grads)
