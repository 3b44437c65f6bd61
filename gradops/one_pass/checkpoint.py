"""An optimizer's state on its way out and in: state dicts, pickles, copies."""

import math
from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradops.backends.torch.math import arithmetic_of
from gradops.numbers import number
from gradops.one_pass.engine import Engine
from gradops.one_pass.groups import params_of
from gradops.one_pass.state import HALF_PRECISION
from gradops.one_pass.stuck import Progress
from gradops.settings import settings_of
from gradops.update_rule import UpdateRule

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


def check_kind(rule: UpdateRule, state_dict: Mapping[str, Any]) -> None:
    """Refuses the state dict of another kind of optimizer.

    Raises:
        ValueError: a group or a parameter's state lacks what those of the rule have, or a group asks for what the rule
            does not do.
    """
    for index, group in enumerate(state_dict["param_groups"]):
        rule.check_off(group, f"the state dict's group {index}")
    groups = ((f"group {index}", group, rule.group_keys) for index, group in enumerate(state_dict["param_groups"]))
    scalars = [scalar.name for scalar in rule.scalars]
    always = [moment.name for moment in rule.moments if not moment.because]
    entries = state_dict["state"].items()
    states = ((f"parameter {name}", entry, (*rule.counters, *scalars, *always)) for name, entry in entries if entry)
    for name, there, wanted in chain(groups, states):
        missing = next((key for key in wanted if there.get(key) is None), None)
        if missing is not None:
            raise ValueError(
                f"the state dict is no {rule.title}'s: its {name} has no {missing}; load the model's weights alone, "
                "and let this optimizer begin anew"
            )


def torchs_number(number: Tensor, group: dict[str, Any]) -> Tensor:
    """A copy of a step counter or another number of a state, where torch's optimizer with the group's settings keeps
    it.
    """
    on_device = group.get("fused") or group.get("capturable")
    return number.clone() if on_device else number.to("cpu", copy=True)


@torch.no_grad()
def widen_moments(states: Mapping[Tensor, Any]) -> None:
    """Moments of half-precision parameters become float32, where plain torch made them."""
    for state in states.values():
        for key, value in state.items() if isinstance(state, Mapping) else ():
            if key != "step" and isinstance(value, Tensor) and value.dtype in HALF_PRECISION:
                state[key] = value.float()


def restore_values(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Undoes the cast to the parameter's dtype that torch's loader makes before any hook sees the state."""
    indices = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    numbers = optimizer.rule.number_names
    for index, param in zip(indices, params_of(optimizer.param_groups), strict=True):
        for key, value in state_dict["state"].get(index, {}).items():
            if key != "step" and isinstance(value, Tensor) and value.is_floating_point():
                dtype = torch.float32 if key in numbers else arithmetic_of(param)
                optimizer.state[param][key] = value.to(device=param.device, dtype=dtype)


def publish(engine: Engine) -> None:
    """Puts scale, counters and guard where a state dict takes them from; waits for the device."""
    buffers = engine.buffers
    engine.look()
    values = (
        *engine.scaling.saved(),
        *buffers.steps.tolist(),
        *(value.item() for value in buffers.guard),
        _last_step(engine),
    )
    engine.optimizer.param_groups[0].update(zip(CHECKPOINT_KEYS, values, strict=True))


def restore_scalars(engine: Engine, saved: dict[str, Any]) -> None:
    """Takes what a checkpoint says; where it says nothing (None), things are as at the start."""
    scale, tracker, taken, skipped, *guard, last = (saved[key] for key in CHECKPOINT_KEYS)
    # Plain torch hands our counters on as they were: what it has stepped since shows in the step counts alone.
    since = 0 if last is None else max(0, _last_step(engine) - last)
    buffers = engine.buffers
    taken, skipped = (taken or 0) + since, skipped or 0
    buffers.stats.steps_taken.fill_(taken)
    buffers.stats.steps_skipped.fill_(skipped)
    engine.progress = Progress(engine.calls, taken, skipped, engine.progress.warned)
    for value, was, start in zip(buffers.guard, guard, GUARD_STARTS, strict=True):
        value.fill_(start if None in guard else was)
    engine.scaling.restore(scale, tracker)


def _last_step(engine: Engine) -> int:
    """The largest step count of a parameter; waits for the device."""
    states = [state for state in engine.optimizer.state.values() if isinstance(state, Mapping)]
    steps = [state["step"] for state in states if state.get("step") is not None]
    if not steps:
        return 0
    device = engine.buffers.scalars.device
    counts = [torch.as_tensor(step, dtype=torch.float32, device=device).reshape(()) for step in steps]
    return int(torch.stack(counts).max())


def pickled(engine: Engine) -> dict[str, Any]:
    """What a pickle or a copy has of an engine."""
    return {
        "settings": settings_of(engine.optimizer),
        "policy": engine.scaling.policy,
        # As lists: tensors made here would be gone before a spawned process could open their memory.
        "buffers": [buffer.tolist() for buffer in engine.buffers.all()],
        "scaled": engine.scaling.scaled,
        "unscaled": engine.scaling.unscaled,
        "protected": None if engine.protected is None else engine.protected.saved(),
    }


def unpickle(engine: Engine, saved: dict[str, Any]) -> None:
    """Makes a new engine what `pickled` says; the settings are the optimizer's already."""
    for buffer, values in zip(engine.buffers.all(), saved["buffers"], strict=True):
        buffer.copy_(torch.as_tensor(values, dtype=buffer.dtype, device="cpu"))
    if engine.protected is not None:
        engine.protected.restore(saved["protected"])
    engine.scaling.policy = saved["policy"]
    engine.scaling.scaled, engine.scaling.unscaled = saved["scaled"], saved["unscaled"]
