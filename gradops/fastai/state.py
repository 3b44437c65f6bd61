"""fastai's format of an optimizer's state, in which a learner with GradOps and one without read each other's files.

fastai's: {"state": one dict a parameter, in the order of the splitter's lists; "hypers": one dict a list}. What ours
has beside it travels as further entries, which fastai keeps and hands on: masters and compensations in a parameter's
dict, loss scale and counters in the first list's.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gradops.one_pass.checkpoint import CHECKPOINT_KEYS

# Ours, and fastai's names for them.
MOMENTS = {"exp_avg": "grad_avg", "exp_avg_sq": "sqr_avg"}
KEPT = ("max_exp_avg_sq", "master", "compensation")
# Of a parameter, by which a learner says whether it decays and whether it is trained though its group is frozen.
FLAGS = ("do_wd", "force_train")


def is_fastais(state_dict: dict[str, Any]) -> bool:
    """Whether it is in fastai's format, and not in torch's."""
    return "hypers" in state_dict


def written(optimizer: Any) -> dict[str, Any]:
    """The state of a `gradops.fastai.Optimizer` in fastai's format."""
    ours = optimizer.opt
    group = ours.state_dict()["param_groups"][0]  # brings scale and counters up to date
    hypers = [_hyper(ours.param_groups[seen]) for seen in range(optimizer.groups_seen)]
    hypers[0].update({key: group[key] for key in CHECKPOINT_KEYS if key in group})
    states = [{**optimizer.state[param], **_state(ours.state.get(param, {}))} for param in _params(optimizer)]
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
    torchs["state"] = {index: _torchs(states[param]) for index, param in enumerate(order) if "step" in states[param]}
    for seen, hyper in enumerate(saved["hypers"]):
        of_norms = (optimizer.undecayed or {}).get(seen)
        for place in (seen, *([] if of_norms is None else [of_norms])):
            group = torchs["param_groups"][place]
            group.update(lr=hyper["lr"], betas=(hyper["mom"], hyper["sqr_mom"]), eps=hyper["eps"])
        torchs["param_groups"][seen]["weight_decay"] = hyper["wd"]
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


def _hyper(group: dict[str, Any]) -> dict[str, Any]:
    mom, sqr_mom = map(float, group["betas"])
    values = {"lr": group["lr"], "mom": mom, "sqr_mom": sqr_mom, "eps": group["eps"], "wd": group["weight_decay"]}
    return {name: float(value) for name, value in values.items()}


def _state(state: dict[str, Any]) -> dict[str, Any]:
    if "step" not in state:
        return {}
    kept = {key: state[key] for key in KEPT if key in state}
    return {"step": int(state["step"]), **{name: state[key] for key, name in MOMENTS.items()}, **kept}


def _torchs(state: dict[str, Any]) -> dict[str, Any]:
    step = torch.tensor(float(state["step"]), dtype=torch.float32, device="cpu")
    kept = {key: state[key] for key in KEPT if key in state}
    return {"step": step, **{key: state[name] for key, name in MOMENTS.items()}, **kept}
