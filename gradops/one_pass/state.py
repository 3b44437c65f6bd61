"""What the optimizer keeps for each parameter, as the settings want it."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from gradops.distributed.shards import is_sharded
from gradops.settings import Settings
from gradops.update_rule import UpdateRule

HALF_PRECISION = (torch.bfloat16, torch.float16)


def moments_dtype_of(param: Tensor, settings: Settings) -> torch.dtype:
    """In which a parameter's moments are stored: as the settings say, but float64 for a float64 parameter."""
    return torch.float64 if param.dtype == torch.float64 else settings.moments_dtype


def wants_master(param: Tensor, settings: Settings) -> bool:
    """Whether a parameter's state has a float32 master.

    Raises:
        ValueError: it should, but is sharded.
    """
    wanted = settings.master_weights and param.dtype in HALF_PRECISION
    if wanted and is_sharded(param):
        raise ValueError(
            "master_weights: a sharded parameter in half precision can have no master; keep it float32 and let "
            "fully_shard's MixedPrecisionPolicy compute in half precision"
        )
    return wanted


def zero_state(param: Tensor, names: Iterable[str], settings: Settings) -> dict[str, Tensor]:
    """The moments of these names and the step count before the first update, in the parameter's layout."""
    dtype = moments_dtype_of(param, settings)
    moments = {name: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format) for name in names}
    return {"step": torch.zeros((), dtype=torch.float32, device=param.device), **moments}


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
    made = [name for name in rule.late_moments_of(group) if name not in state]
    counts = rule.counts_as_torch or state.get("step") is not None
    if not made and counts:
        return
    fresh = zero_state(param, made, settings)
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
        moved = (param.float() + 0.5 * kept.float()).to(param.dtype) != param
        kept.masked_fill_(moved, 0.0)
