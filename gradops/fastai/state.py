"""fastai's format of an optimizer's state, in which a learner with GradOps and one without read each other's files.

fastai's: {"state": one dict a parameter, in the order of the splitter's lists; "hypers": one dict a list}. What ours
has beside it travels as further entries, which fastai keeps and hands on: masters, compensations, averages and moments
that fastai has no name for in a parameter's dict, loss scale and counters in the first list's.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradops._frameworks import needs
from gradops.one_pass.checkpoint import CHECKPOINT_KEYS

with needs("fastai"):
    from fastai.optimizer import set_item_pg

# Ours, and fastai's names for them, by rule; others keep their names.
MOMENTS = {
    "adam": {"exp_avg": "grad_avg", "exp_avg_sq": "sqr_avg"},
    "sgd": {"momentum_buffer": "grad_avg"},
    "rmsprop": {"square_avg": "sqr_avg"},
}
# Of a parameter, by which a learner says whether it decays and whether it is trained though its group is frozen.
FLAGS = ("do_wd", "force_train")
# fastai's names of what is saved of a list; the rest is the optimizer's own.
HYPERS = ("lr", "mom", "sqr_mom", "eps", "wd")


def is_fastais(state_dict: dict[str, Any]) -> bool:
    """Whether it is in fastai's format, and not in torch's."""
    return "hypers" in state_dict


def written(optimizer: Any) -> dict[str, Any]:
    """The state of a `gradops.fastai.Optimizer` in fastai's format."""
    ours = optimizer.opt
    group = ours.state_dict()["param_groups"][0]  # brings scale and counters up to date
    hypers = [{key: float(value) for key, value in hyper.items() if key in HYPERS} for hyper in optimizer.hypers]
    hypers[0].update({key: group[key] for key in CHECKPOINT_KEYS if key in group})
    names = MOMENTS.get(ours.rule.name, {})
    states = [{**optimizer.state[param], **_fastais(ours.state.get(param, {}), names)} for param in _params(optimizer)]
    return {"state": states, "hypers": hypers}


def read(optimizer: Any, saved: dict[str, Any]) -> None:
    """Puts a state in fastai's format into a `gradops.fastai.Optimizer`.

    Raises:
        ValueError: it is of other lists of parameters.
    """
    params, ours = list(_params(optimizer)), optimizer.opt
    if (len(saved["hypers"]), len(saved["state"])) != (optimizer.groups_seen, len(params)):
        raise ValueError(
            f"the saved optimizer has {len(saved['hypers'])} groups of {len(saved['state'])} parameters, this one "
            f"{optimizer.groups_seen} of {len(params)}"
        )
    states = dict(zip(params, saved["state"], strict=True))
    _take_flags(optimizer, states)
    torchs = ours.state_dict()
    order = [param for group in ours.param_groups for param in group["params"]]
    names = {theirs: name for name, theirs in MOMENTS.get(ours.rule.name, {}).items()}
    read = {index: _torchs(states[param], names) for index, param in enumerate(order)}
    torchs["state"] = {index: state for index, state in read.items() if state}
    for seen, hyper in enumerate(saved["hypers"]):
        _set_hypers(optimizer, torchs["param_groups"], seen, hyper)
    torchs["param_groups"][0].update({key: saved["hypers"][0].get(key) for key in CHECKPOINT_KEYS})
    ours.load_state_dict(torchs)


def _params(optimizer: Any) -> Iterator[Tensor]:
    return (param for params in optimizer.lists for param in params)


def _take_flags(optimizer: Any, states: dict[Tensor, dict[str, Any]]) -> None:
    """The saved flags hold, as in fastai, and not those that the learner has set."""
    decayed_before = [optimizer.state[param].get("do_wd", True) for param in states]
    for param, state in states.items():
        kept = {key: value for key, value in optimizer.state[param].items() if key not in FLAGS}
        optimizer.state[param] = {**kept, **{flag: state[flag] for flag in FLAGS if flag in state}}
    if decayed_before != [optimizer.state[param].get("do_wd", True) for param in states]:
        optimizer.part_anew()


def _set_hypers(optimizer: Any, groups: list[dict[str, Any]], seen: int, hyper: dict[str, Any]) -> None:
    """Puts the hyper-parameters of one of fastai's lists into its group, and into that of its undecayed parameters."""
    marked = (optimizer.undecayed or {}).get(seen)
    for name in HYPERS:
        if name in hyper and name in optimizer.bwd_map:
            set_item_pg(groups[seen], optimizer.bwd_map[name], hyper[name])
            if marked is not None and name != "wd":
                set_item_pg(groups[marked], optimizer.bwd_map[name], hyper[name])


def _fastais(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A parameter's state under fastai's names."""
    named = {names.get(key, key): value for key, value in state.items()}
    return {**named, "step": int(named["step"])} if "step" in named else named


def _torchs(state: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A parameter's state under torch's names; a step from fastai's Adam is a number."""
    named = {names.get(key, key): value for key, value in state.items() if key not in FLAGS}
    if "step" in named:
        named["step"] = torch.tensor(float(named["step"]), dtype=torch.float32, device="cpu")
    return named
