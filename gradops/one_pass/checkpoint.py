"""An optimizer's state on its way out and in: state dicts, pickles, copies."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradops.backends.torch.math import arithmetic_of
from gradops.numbers import number
from gradops.one_pass.groups import params_of
from gradops.one_pass.loss_scaling import LossScaled
from gradops.one_pass.state import HALF_PRECISION, MOMENTS
from gradops.one_pass.stuck import Progress
from gradops.policies.loss_scale import DynamicLossScale
from gradops.policies.protect import Protected
from gradops.settings import SETTINGS, Settings

# Values of the state dict that hold what plain torch has no place for. They ride in the first group, as flat scalars:
# distributed checkpoints keep those and plain torch ignores them.
# A checkpoint may lack any of them, being older or plain torch's: then they have their start values.
CHECKPOINT_KEYS = (
    "gradops_loss_scale",
    "gradops_growth_tracker",
    "gradops_steps_taken",
    "gradops_steps_skipped",
    "gradops_lr_factor",
    "gradops_usual_norm",
    "gradops_norm_deviation",
    "gradops_norms_seen",
    "gradops_last_step",
)

# Of learning-rate factor, usual norm, deviation and norms seen.
GUARD_STARTS = (1.0, 0.0, 0.0, 0)

# Those that count.
_COUNTED = ("gradops_growth_tracker", "gradops_steps_taken", "gradops_steps_skipped", "gradops_last_step")


def saved_scalars(group: Mapping[str, Any]) -> dict[str, Any]:
    """What the first group of a state dict or an optimizer says of ours; None where it says nothing.

    Raises:
        TypeError: a value is no number.
        ValueError: the loss scale is NaN, or a count not finite.
    """
    saved = {key: group.get(key) for key in CHECKPOINT_KEYS}
    for key in ("gradops_loss_scale", *_COUNTED):
        value = 0.0 if saved[key] is None else number(f"the state dict's {key}", saved[key])
        if math.isnan(value) or (key in _COUNTED and math.isinf(value)):
            raise ValueError(f"the state dict's {key} is {value}; delete it there to begin it anew")
    return saved


def check_kind(state_dict: Mapping[str, Any]) -> None:
    """Refuses the state dict of another kind of optimizer.

    Raises:
        ValueError: a group or a parameter's state lacks what Adam's has.
    """
    groups = ((f"group {index}", group, ("betas", "eps")) for index, group in enumerate(state_dict["param_groups"]))
    entries = state_dict["state"].items()
    states = ((f"parameter {name}", entry, ("step", *MOMENTS[:2])) for name, entry in entries if entry)
    for name, there, wanted in chain(groups, states):
        missing = next((key for key in wanted if key not in there), None)
        if missing is not None:
            raise ValueError(
                f"the state dict is no Adam's: its {name} has no {missing}; load the model's weights alone, and let "
                "this optimizer begin anew"
            )


def torchs_step(step: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a step counter, where torch's Adam with the group's settings keeps it."""
    on_device = group.get("fused") or group.get("capturable")
    return step.clone() if on_device else step.to("cpu", copy=True)


class Checkpointed(LossScaled):
    """State dicts that plain torch reads too, and that resume a run bit for bit."""

    def _setup(self, settings: Settings) -> None:
        raise NotImplementedError

    _protected: Protected | None
    _calls: int  # of step()
    _progress: Progress

    def refresh_(self) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """torch's state dict; scale, counters and guard are `gradops_*` scalars in its first group. Synchronises.

        As in torch's, its tensors are the live ones, step counts included: copy it (`copy.deepcopy`) to keep it while
        training goes on.
        """
        self._publish()
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
        for group in state_dict["param_groups"][:1]:
            saved_scalars(group)
        final: dict[str, Any] = {}

        def begin(_: Any, loaded: dict[str, Any]) -> None:
            check_kind(loaded)
            final.update(loaded)

        handles = [
            self.register_load_state_dict_pre_hook(begin),
            self.register_load_state_dict_post_hook(lambda _: self._restore_moments(final), prepend=True),
        ]
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()
        self._restore_scalars(saved_scalars(self.param_groups[0]))
        self._scaled = False
        self._unscaled = None
        self.refresh_()
        self._publish()
        for watcher in self._watchers:
            watcher.after_load()

    def __getstate__(self) -> dict[str, Any]:
        runtime = {
            "settings": Settings(**{name: getattr(self, name) for name in SETTINGS}),
            "policy": self._scale_policy,
            # As lists: tensors made here would be gone before a spawned process could open their memory.
            "buffers": [buffer.tolist() for buffer in self._buffers.all()],
            "scaled": self._scaled,
            "unscaled": self._unscaled,
            "protected": None if self._protected is None else self._protected.saved(),
        }
        return {**super().__getstate__(), "_gradops": runtime}

    def __setstate__(self, state: dict[str, Any]) -> None:
        runtime = state.get("_gradops")
        super().__setstate__({key: value for key, value in state.items() if key != "_gradops"})
        if runtime is None:
            return  # torch's load_state_dict comes this way too
        self._setup(runtime["settings"])
        for buffer, saved in zip(self._buffers.all(), runtime["buffers"], strict=True):
            buffer.copy_(torch.as_tensor(saved, dtype=buffer.dtype, device="cpu"))
        if self._protected is not None:
            self._protected.restore(runtime["protected"])
        self._scale_policy = runtime["policy"]
        self._scaled = runtime["scaled"]
        self._unscaled = runtime["unscaled"]

    def _widen_moments(self) -> None:
        """Moments of half-precision parameters become float32, where plain torch made them."""
        for state in self.state.values():
            for key, value in state.items() if isinstance(state, Mapping) else ():
                if key != "step" and isinstance(value, Tensor) and value.dtype in HALF_PRECISION:
                    state[key] = value.float()

    def _restore_moments(self, state_dict: dict[str, Any]) -> None:
        """Undoes the cast to the parameter's dtype that torch's loader makes before any hook sees the state."""
        indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for index, param in zip(indices, params_of(self.param_groups), strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                    self.state[param][key] = value.to(device=param.device, dtype=arithmetic_of(param))

    def _publish(self) -> None:
        """Puts scale, counters and guard where a state dict takes them from."""
        waiting = self._loaded_scale if self._scale_policy is None else None
        scale = waiting or (float(self._buffers.current_scale), int(self._buffers.growth_tracker))
        counts = self._buffers.steps.tolist()
        if not self._watchers:
            self._progress = self._progress.seen(self._calls, *counts)
        values = (
            *scale,
            *counts,
            *(value.item() for value in self._buffers.guard),
            self._last_step(),
        )
        self.param_groups[0].update(zip(CHECKPOINT_KEYS, values, strict=True))

    def _last_step(self) -> int:
        """The largest step count of a parameter; waits for the device."""
        states = [state for state in self.state.values() if isinstance(state, Mapping)]
        steps = [state["step"] for state in states if state.get("step") is not None]
        if not steps:
            return 0
        device = self._buffers.scalars.device
        counts = [torch.as_tensor(step, dtype=torch.float32, device=device).reshape(()) for step in steps]
        return int(torch.stack(counts).max())

    def _restore_scalars(self, saved: dict[str, Any]) -> None:
        """Takes what a checkpoint says; where it says nothing (None), things are as at the start."""
        scale, tracker, taken, skipped, *guard, last = (saved[key] for key in CHECKPOINT_KEYS)
        # Plain torch hands our counters on as they were: what it has stepped since shows in the step counts alone.
        since = 0 if last is None else max(0, self._last_step() - last)
        self._buffers.stats.steps_taken.fill_((taken or 0) + since)
        self._buffers.stats.steps_skipped.fill_(skipped or 0)
        self._progress = Progress(self._calls, (taken or 0) + since, skipped or 0, self._progress.warned)
        for value, was, start in zip(self._buffers.guard, guard, GUARD_STARTS, strict=True):
            value.fill_(start if None in guard else was)
        if isinstance(policy := self._scale_policy, DynamicLossScale):
            self._buffers.current_scale.fill_(policy.init_scale if scale is None else scale)
            self._buffers.current_scale.clamp_(policy.min_scale, policy.max_scale)
            self._buffers.growth_tracker.fill_(tracker or 0)
        else:  # a scale of 1 is that of a run without one
            self._loaded_scale = None if scale in (None, 1.0) else (scale, tracker or 0)
