"""The optimizer's Python side: everything between `loss.backward()` and the next forward as one call."""

import functools
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import optimizer as torch_optimizer

from gradops import backends
from gradops.loss_scale import DynamicLossScale
from gradops.relative_step import RelativeStepCap
from gradops.settings import SETTINGS, LossScale, Settings, loss_scale_policy
from gradops.stats import StepBuffers, StepStats

_OUT_OF_ORDER = (
    "loss_scale is set, but neither scale() nor backward() ran since the last step(): these gradients belong to an "
    "unscaled loss, and dividing them by the scale would hide that. Call optimizer.backward(loss)"
)
_TWO_SCALERS = (
    "this optimizer has its own loss_scale and is stepped by a GradScaler too: the gradients would be unscaled twice. "
    "Use one of them"
)

# Values of the state dict that hold what plain torch has no place for. They ride in the first group, as flat scalars:
# distributed checkpoints keep those and plain torch ignores them.
CHECKPOINT_KEYS = (
    "gradops_loss_scale",
    "gradops_growth_tracker",
    "gradops_steps_taken",
    "gradops_steps_skipped",
)


def check_groups(param_groups: list[dict[str, Any]], backend: str | None) -> None:
    """Refuses what the one pass cannot do, before anything has changed.

    Raises:
        RuntimeError: naming the first parameter that cannot be stepped, and why, or why the backend cannot run.
        ValueError: a parameter stands twice in the groups, or a group is differentiable.
    """
    seen = set()
    for group in param_groups:
        if group.get("differentiable"):
            raise ValueError("differentiable=True cannot be fused; leave this optimizer to torch")
    for param, name in zip(_params(param_groups), param_names(param_groups), strict=True):
        if param in seen:
            raise ValueError(f"parameter '{name}' is in the param_groups twice")
        seen.add(param)
    buffers = StepBuffers()
    device = device_of(param_groups)
    buffers.resize(param_names(param_groups), device)
    plan = backends.make_plan(backends.choose(device, backend))
    plan.bind_params(param_groups, param_names(param_groups), buffers)


def param_names(param_groups: list[dict[str, Any]]) -> tuple[str, ...]:
    """One name per parameter: those of named parameters, else `param_<position>`."""
    names: list[str] = []
    for group in param_groups:
        start = len(names)
        names += group.get("param_names") or [f"param_{start + i}" for i in range(len(group["params"]))]
    return tuple(names)


def torchs_step(step: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a step counter, where torch's Adam with the group's settings keeps it."""
    on_device = group.get("fused") or group.get("capturable")
    return step.clone() if on_device else step.to("cpu", copy=True)


def _params(param_groups: list[dict[str, Any]]) -> Iterable[Tensor]:
    return chain.from_iterable(group["params"] for group in param_groups)


def device_of(param_groups: list[dict[str, Any]]) -> torch.device:
    """Where the first parameter is, and so all must be."""
    first = next(iter(_params(param_groups)), None)
    return torch.device("cpu") if first is None else first.device


StepT = TypeVar("StepT", bound=Callable[..., Any])


def _hooked(step: StepT) -> StepT:
    """What torch does to the step of every optimizer, its label for profilers and the step hooks, where it is needed.

    torch opens the label's range whether or not anybody looks, which takes longer than a small network's step.
    """
    watched = torch.optim.Optimizer.profile_hook_step(step)
    hooks_of_all = (torch_optimizer._global_optimizer_pre_hooks, torch_optimizer._global_optimizer_post_hooks)

    @functools.wraps(step)
    def hooked(self: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or any(hooks_of_all)
        if hooks or torch.autograd._profiler_enabled():
            return watched(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    hooked.hooked = True  # type: ignore[attr-defined]  # torch's sign that there is nothing left to do
    return hooked  # type: ignore[return-value]


class OnePass(torch.optim.Optimizer):
    """What `gradops.Adam` and `gradops.AdamW` add to torch's classes.

    The settings (`max_norm`, `norm_type`, `clip_value`, `max_relative_step`, `loss_scale`) are plain attributes, read
    at each step; see `gradops.wrap` for what they mean.
    """

    # On the class: an instance's attribute would be lost in deepcopy and pickle.
    _step_supports_amp_scaling = True

    # Attributes besides the settings, for unwrap to remove.
    RUNTIME = ("_settings_key", "_prepared", "_buffers", "_plan", "_choice", "_scale_policy", "_scaled", "_unscaled")

    max_norm: float | None
    norm_type: float
    clip_value: float | None
    max_relative_step: float | RelativeStepCap | None
    loss_scale: LossScale
    backend: str | None

    # A GradScaler sets both around step().
    grad_scale: Tensor | None
    found_inf: Tensor

    def __init__(
        self,
        params: Any,
        *args: Any,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        clip_value: float | None = None,
        max_relative_step: float | RelativeStepCap | None = None,
        loss_scale: LossScale = None,
        backend: str | None = None,
        **kwargs: Any,
    ) -> None:
        settings = Settings(max_norm, norm_type, clip_value, max_relative_step, loss_scale, backend)
        settings.checked()
        super().__init__(params, *args, **kwargs)
        check_groups(self.param_groups, backend)
        self._setup(settings)

    def _setup(self, settings: Settings) -> None:
        """Takes the settings; the groups have been checked."""
        settings.checked()
        for name in SETTINGS:
            setattr(self, name, getattr(settings, name))
        saved = {key: self.param_groups[0].get(key) for key in CHECKPOINT_KEYS}
        self._settings_key: tuple[Any, ...] | None = None
        self._buffers = StepBuffers()
        self._scale_policy: None | float | DynamicLossScale = None
        self._scaled = False  # a loss was scaled since the last step
        self._unscaled: Tensor | None = None  # found_inf of unscale_(), if it ran since then
        self._choice: backends.Choice | None = None
        self._bind()
        self._widen_moments()
        self._follow_policy()
        self._restore_scalars(saved)
        self._publish()

    @property
    def stats(self) -> StepStats:
        """What the last step measured, in live buffers; `stats.clone()` keeps a copy."""
        return self._buffers.stats

    @_hooked
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Unscales, checks, measures, clips and updates in one pass, and moves the loss scale.

        A step in which an inf or NaN is found leaves parameters, moments and step counts bit for bit as they were. A
        step in which no parameter has a gradient changes nothing. `param.grad` is left as backward made it.

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
        if not self._plan.step(self.param_groups, self.state, settings, *scaling):
            self._link()
            if not self._plan.step(self.param_groups, self.state, self._plan_settings(), *scaling):
                raise RuntimeError("the optimizer's groups or state change while it steps")
            self._buffers.set_backend(self._plan.description())
        self._scaled = False
        self._unscaled = None
        return loss

    def scale(self, outputs: Any) -> Any:
        """Multiplies a loss, or an iterable of losses, by the loss scale; returned unchanged without one.

        Args:
            outputs: a tensor or a (nested) list or tuple of tensors.

        Returns:
            The same structure, scaled. The scale is a float32 scalar on the device, never synchronised.
        """
        if self.loss_scale is None:
            return outputs
        if not self._scaled:
            self._plan_settings()
            self._follow_policy()
        self._scaled = True
        # A copy: the live buffer moves at the next step, and autograd may still need this value then.
        factor = self._buffers.current_scale.clone()

        def scaled(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value * factor.to(value.device)
            if isinstance(value, (list, tuple)):
                return type(value)(scaled(item) for item in value)
            raise TypeError(f"outputs must be a tensor or a list or tuple of tensors, got {type(value).__name__}")

        return scaled(outputs)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """`self.scale(loss).backward(**kwargs)`: the line that replaces `loss.backward()`."""
        self.scale(loss).backward(**kwargs)

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
        if not self._scaled:
            raise RuntimeError(_OUT_OF_ORDER)
        if self._unscaled is not None:
            raise RuntimeError("unscale_() has already been called since the last step()")
        self._bind()
        self._plan.params_without_state()  # checks every gradient before the first is changed
        grads = [param.grad for param in _params(self.param_groups) if param.grad is not None]
        self._unscaled = torch.ops.gradops.unscale_(grads, self._buffers.current_scale)

    def refresh_(self) -> None:
        """Reads the sizes of the parameters anew for `max_relative_step`, after edits through `.data`.

        Edits that autograd counts (`with torch.no_grad(): param.mul_(2)`, `load_state_dict`) are noticed without it.
        """
        self._plan.refresh()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the new parameters must be ones that the one pass can step."""
        super().add_param_group(param_group)
        if not hasattr(self, "_plan"):
            return  # torch's constructor adds the first groups; _setup follows
        try:
            check_groups(self.param_groups, self.backend)
        except (RuntimeError, ValueError):
            self.param_groups.pop()
            raise
        self._bind()

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict; loss scale and counters are `gradops_*` scalars in its first group. Synchronises."""
        self._publish()
        packed = super().state_dict()
        for group in packed["param_groups"]:
            for index in group["params"]:
                if "step" in (entry := packed["state"].get(index, {})):
                    packed["state"][index] = {**entry, "step": torchs_step(entry["step"], group)}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, for state dicts of gradops and of plain torch; the moments stay float32.

        The settings given to the constructor or to `wrap` stay; a dynamic loss scale and the counters are restored.
        """
        final: dict[str, Any] = {}
        handles = [
            self.register_load_state_dict_pre_hook(lambda _, loaded: final.update(loaded)),
            self.register_load_state_dict_post_hook(lambda _: self._restore_moments(final), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()
        self._restore_scalars({key: self.param_groups[0].get(key) for key in CHECKPOINT_KEYS})
        self._scaled = False
        self._unscaled = None
        self.refresh_()
        self._publish()

    def __getstate__(self) -> dict[str, Any]:
        runtime = {
            "settings": Settings(**{name: getattr(self, name) for name in SETTINGS}),
            "policy": self._scale_policy,
            "buffers": [buffer.clone() for buffer in self._buffers.all()],
            "scaled": self._scaled,
            "unscaled": self._unscaled,
        }
        return {**super().__getstate__(), "_gradops": runtime}

    def __setstate__(self, state: dict[str, Any]) -> None:
        runtime = state.get("_gradops")
        super().__setstate__({key: value for key, value in state.items() if key != "_gradops"})
        if runtime is None:
            return  # torch's load_state_dict comes this way too
        self._setup(runtime["settings"])
        for buffer, saved in zip(self._buffers.all(), runtime["buffers"], strict=True):
            buffer.copy_(saved)
        self._scale_policy = runtime["policy"]
        self._scaled = runtime["scaled"]
        self._unscaled = runtime["unscaled"]

    def _plan_settings(self) -> Any:
        """What the attributes say, as the plan takes it; a plan for another backend is made here."""
        values = (
            self.max_norm, self.norm_type, self.clip_value, self.max_relative_step, self.loss_scale, self.backend
        )  # fmt: skip
        if values != self._settings_key:
            settings = Settings(*values).checked()
            self._bind()
            self._prepared = self._plan.prepare(settings)
            self._settings_key = values
        return self._prepared

    def _bind(self) -> None:
        """Gives the plan the groups as they are now."""
        choice, names = backends.choose(device_of(self.param_groups), self.backend), param_names(self.param_groups)
        if choice != self._choice:
            self._plan, self._choice, self._settings_key = backends.make_plan(choice), choice, None
        self._buffers.resize(names, choice.device)
        self._plan.bind_params(self.param_groups, names, self._buffers)

    def _scaling(self) -> tuple[Tensor | None, bool, Tensor | None]:
        """The loss scale, whether the gradients still carry it, and found_inf of those who looked before."""
        if hasattr(self, "found_inf"):
            if self.loss_scale is not None:
                raise RuntimeError(_TWO_SCALERS)
            return self.grad_scale, True, self.found_inf
        if self.loss_scale is None and not self._scaled:
            return None, True, None
        if not self._scaled:
            raise RuntimeError(_OUT_OF_ORDER)
        if self._scale_policy != loss_scale_policy(self.loss_scale):
            raise RuntimeError("loss_scale was changed between scale() and step(); change it right after a step")
        return self._buffers.current_scale, self._unscaled is None, self._unscaled

    def _follow_policy(self) -> None:
        """Makes the current scale one that the policy allows, when the policy has changed."""
        policy, before = loss_scale_policy(self.loss_scale), self._scale_policy
        if policy == before:
            return
        self._scale_policy = policy
        scale = self._buffers.current_scale
        if not isinstance(policy, DynamicLossScale):
            scale.fill_(1.0 if policy is None else policy)
        elif isinstance(before, DynamicLossScale):
            scale.clamp_(policy.min_scale, policy.max_scale)
        else:
            scale.fill_(policy.init_scale)
            self._buffers.growth_tracker.zero_()

    def _is_ghost_step(self) -> bool:
        """Whether torch's distributed checkpoint only wants the state created: lr 0 everywhere and zero gradients."""
        if any(float(group["lr"]) != 0.0 for group in self.param_groups):
            return False
        grads = [param.grad for param in _params(self.param_groups) if param.grad is not None]
        return bool(grads) and not any(grad.any() for grad in grads)

    @torch.no_grad()
    def _link(self) -> None:
        """Binds the plan to the groups and the state as they are now, and creates the state that is missing."""
        self._bind()
        self._plan.params_without_state()  # raises for a gradient that does not fit, before any state is made
        params = [(param, group) for group in self.param_groups for param in group["params"]]
        self._gather_steps()
        self._plan.bind_state(self.state)
        for index in self._plan.params_without_state():
            param, group = params[index]
            self.state[param].update(self._zero_state(param, group["amsgrad"]))
        self._gather_steps()
        self._plan.bind_state(self.state)

    @staticmethod
    def _zero_state(param: Tensor, amsgrad: bool) -> dict[str, Tensor]:
        names = ["exp_avg", "exp_avg_sq"] + ["max_exp_avg_sq"] * amsgrad
        moments = {
            name: torch.zeros_like(param, dtype=torch.float32, memory_format=torch.preserve_format) for name in names
        }
        return {"step": torch.zeros((), dtype=torch.float32, device=param.device), **moments}

    def _gather_steps(self) -> None:
        """Makes every step counter a 0-d view of one buffer on the parameters' device, without waiting for it."""
        states = [state for state in self.state.values() if state.get("step") is not None]
        if not states:
            return
        device = self._buffers.scalars.device
        base, *others = (getattr(state["step"], "_base", None) for state in states)
        if base is not None and base.device == device and all(other is base for other in others):
            return
        steps = [torch.as_tensor(state["step"]).reshape(()).to(device, torch.float32) for state in states]
        for state, view in zip(states, torch.stack(steps).unbind(), strict=True):
            state["step"] = view

    def _widen_moments(self) -> None:
        """Moments of half-precision parameters become float32, where plain torch made them."""
        for state in self.state.values():
            for key, value in state.items():
                if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                    state[key] = value.float()

    def _restore_moments(self, state_dict: dict[str, Any]) -> None:
        """Undoes the cast to the parameter's dtype that torch's loader makes before any hook sees the state."""
        indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for index, param in zip(indices, _params(self.param_groups), strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                    self.state[param][key] = value.to(device=param.device, dtype=torch.float32)

    def _publish(self) -> None:
        """Puts scale and counters where a state dict takes them from."""
        values = (
            float(self._buffers.current_scale),
            int(self._buffers.growth_tracker),
            int(self.stats.steps_taken),
            int(self.stats.steps_skipped),
        )
        self.param_groups[0].update(zip(CHECKPOINT_KEYS, values, strict=True))

    def _restore_scalars(self, saved: dict[str, Any]) -> None:
        scale, tracker, taken, skipped = (saved[key] for key in CHECKPOINT_KEYS)
        if taken is not None:
            self.stats.steps_taken.fill_(taken)
            self.stats.steps_skipped.fill_(skipped)
        if scale is not None and isinstance(self._scale_policy, DynamicLossScale):
            self._buffers.current_scale.fill_(scale).clamp_(self._scale_policy.min_scale, self._scale_policy.max_scale)
            self._buffers.growth_tracker.fill_(tracker)
