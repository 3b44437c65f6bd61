"""What the optimizer keeps for each parameter, as the settings want it."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from gradops.backends.checks import takes_part
from gradops.backends.torch.math import arithmetic_of
from gradops.distributed.shards import local_tensor
from gradops.settings import Settings
from gradops.update_rule import UpdateRule

HALF_PRECISION = (torch.bfloat16, torch.float16)


def moments_dtype_of(param: Tensor, settings: Settings) -> torch.dtype:
    """In which a parameter's moments are stored: as the settings say, but float64 for a float64 parameter."""
    return torch.float64 if param.dtype == torch.float64 else settings.moments_dtype


def wants_master(param: Tensor, settings: Settings) -> bool:
    """Whether a parameter's state has a float32 master."""
    return settings.master_weights and param.dtype in HALF_PRECISION


def start_state(param: Tensor, rule: UpdateRule, moments: Mapping[str, float], settings: Settings) -> dict[str, Tensor]:
    """Moments that begin so, by name, in the parameter's layout, and the rule's numbers before the first update."""
    like: dict[str, Any] = {"dtype": moments_dtype_of(param, settings), "memory_format": torch.preserve_format}
    starts = {"step": 0.0, **{scalar.name: scalar.start for scalar in rule.scalars}}
    numbers = {key: torch.full((), start, dtype=torch.float32, device=param.device) for key, start in starts.items()}
    return {**numbers, **{name: torch.full_like(param, start, **like) for name, start in moments.items()}}


def drop_unused_states(states: MutableMapping[Tensor, Any]) -> None:
    """Drops the states of parameters that do not take part and have seen no update: they are made where they do.

    Some of torch's constructors make one for every parameter.
    """
    for param, state in list(states.items()):
        if not isinstance(param, Tensor) or takes_part(param) or not isinstance(state, Mapping):
            continue
        step = state.get("step")
        if isinstance(step, Tensor) and (step.is_meta or step.item() == 0):
            del states[param]


def fit_state(
    state: MutableMapping[str, Any], param: Tensor, rule: UpdateRule, group: Mapping[str, Any], settings: Settings
) -> None:
    """Gives a parameter's state the entries that its group and the settings want, and takes those that they do not.

    Moments are cast where they are of another dtype than the settings'; those of complex numbers are left alone.
    """
    dtype = moments_dtype_of(param, settings)
    for name in rule.moment_names:
        moment = state.get(name)
        if isinstance(moment, Tensor) and moment.is_floating_point() and moment.dtype != dtype:
            state[name] = moment.to(dtype)
    _fit_late_moments(state, param, rule, group, settings)
    _fit_master(state, param, wants_master(param, settings))
    _fit_compensation(state, param, settings.rounding == "kahan" and param.dtype in HALF_PRECISION)
    _fit_ema(state, param, settings.ema is not None)


def _fit_late_moments(
    state: MutableMapping[str, Any], param: Tensor, rule: UpdateRule, group: Mapping[str, Any], settings: Settings
) -> None:
    """Makes the moments that a group has come to use, and the step count where torch has none.

    Torch knows a first update by a moment that is not there yet. Where it does not count, the count begins with such a
    moment; a state of torch's that has one has seen an update.
    """
    for name in rule.moment_names:
        if name in state and state[name] is None:  # as torch writes that there is none
            del state[name]
    made = [moment.name for moment in rule.late_moments if moment.used(group) and moment.name not in state]
    counts = rule.counts_as_torch or state.get("step") is not None
    if not made and counts:
        return
    fresh = start_state(param, rule, dict.fromkeys(made, 0.0), settings)
    if not rule.counts_as_torch:
        seen = not made and any(name in state for name in rule.moment_names)
        state["step"] = fresh["step"] + float(seen)
    state.update((name, fresh[name]) for name in made)


def _fit_master(state: MutableMapping[str, Any], param: Tensor, wanted: bool) -> None:
    """A master that is there stays where it still stands for the parameter.

    An element that is not the rounded master was written by somebody else since (a loaded model, an edit), and the
    master takes its value.
    """
    if not wanted:
        state.pop("master", None)
        return
    master = state.get("master")
    if not isinstance(master, Tensor):
        state["master"] = param.detach().float()
    elif (master.shape, master.device) == (param.shape, param.device):  # else the plan refuses it, and says why
        master, param = local_tensor(master), local_tensor(param)
        torch.where(master.to(param.dtype) == param, master, param.float(), out=master)


def _fit_compensation(state: MutableMapping[str, Any], param: Tensor, wanted: bool) -> None:
    """A compensation that is there stays where rounding can have left it beside the parameter.

    That is half a unit in the parameter's last place at most, which rounding it may make a tie: half of it is looked
    at. An element with more was written by somebody else since.
    """
    if not wanted:
        state.pop("compensation", None)
        return
    kept = state.get("compensation")
    if not isinstance(kept, Tensor):
        state["compensation"] = torch.zeros_like(param, memory_format=torch.preserve_format)
    elif (kept.shape, kept.device) == (param.shape, param.device):  # else the plan refuses it, and says why
        if kept.dtype != param.dtype:
            state["compensation"] = kept = kept.to(param.dtype)  # torch's loader made it float32
        kept, param = local_tensor(kept), local_tensor(param)
        moved = (param.float() + 0.5 * kept.float()).to(param.dtype) != param
        kept.masked_fill_(moved, 0.0)


def _fit_ema(state: MutableMapping[str, Any], param: Tensor, wanted: bool) -> None:
    """An average that is there stays; a new one begins as what is updated is now."""
    if not wanted:
        state.pop("ema", None)
    elif not isinstance(state.get("ema"), Tensor):
        begins = state.get("master", param).detach()
        state["ema"] = begins.to(arithmetic_of(param), copy=True)


def gather_numbers(states: Mapping[Tensor, Any], rule: UpdateRule, device: torch.device) -> None:
    """Makes the rule's numbers of every state 0-d views of one buffer on the parameters' device, without waiting for
    it.

    Those in memory that processes share stay where they are, or the others would not see them move.
    """
    # torch lets users keep what they like beside the parameters' states.
    of_params = [state for state in states.values() if isinstance(state, MutableMapping)]
    places = [
        (state, key)
        for key in rule.number_names
        for state in of_params
        if state.get(key) is not None and not _is_shared(state[key], device)
    ]
    if not places:
        return
    base, *others = (getattr(state[key], "_base", None) for state, key in places)
    if base is not None and base.device == device and all(other is base for other in others):
        return
    numbers = [torch.as_tensor(state[key], dtype=torch.float32, device=device).reshape(()) for state, key in places]
    for (state, key), view in zip(places, torch.stack(numbers).unbind(), strict=True):
        state[key] = view


def _is_shared(number: Any, device: torch.device) -> bool:
    """Whether other processes may move this tensor, and the step can, too."""
    if not isinstance(number, Tensor) or device.type != "cpu":  # CUDA tensors all say that they are shared
        return False
    return number.device == device and number.dtype == torch.float32 and number.numel() == 1 and number.is_shared()
