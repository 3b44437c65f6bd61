"""What torch 2.6 lacks and later versions have; with torch 2.7 or newer nothing here changes anything."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

BEFORE_2_7 = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7)
_DECOUPLED = "decoupled_weight_decay"
_ADAMS = (torch.optim.Adam, torch.optim.AdamW)  # there the second is no subclass of the first
# Keys of param groups that are ours there, and torch's from 2.7 on.
KEYS_BEFORE_2_7 = (_DECOUPLED,) if BEFORE_2_7 else ()


def refuse_before_2_7(keywords: Mapping[str, Any]) -> None:
    """Refuses the keyword of Adam that torch 2.6 lacks.

    Raises:
        TypeError: it is there.
    """
    if BEFORE_2_7 and _DECOUPLED in keywords:
        raise TypeError(
            f"{_DECOUPLED} of Adam needs torch 2.7 or newer, this is {torch.__version__}; "
            "gradops.AdamW has decoupled weight decay in every version"
        )


def name_decay_before_2_7(optimizer: torch.optim.Optimizer) -> None:
    """Says in the groups whether weight decay is decoupled, which in torch 2.6 the optimizer's class alone says."""
    if BEFORE_2_7 and isinstance(optimizer, _ADAMS):
        decoupled = isinstance(optimizer, torch.optim.AdamW)
        for group in optimizer.param_groups:
            if group.get(_DECOUPLED) is not decoupled:  # a group may be a view that takes nothing
                group[_DECOUPLED] = decoupled


def unname_decay_before_2_7(optimizer: torch.optim.Optimizer) -> None:
    """Undoes `name_decay_before_2_7`."""
    if BEFORE_2_7 and isinstance(optimizer, _ADAMS):
        for group in optimizer.param_groups:
            group.pop(_DECOUPLED, None)


def annotate_before_2_7(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Spells annotations as torch 2.6 reads operators' schemas from them: List[Tensor] for list[Tensor]."""
    if BEFORE_2_7:
        spelt = {list[Tensor]: typing.List[Tensor], list[float]: typing.List[float]}  # noqa: UP006
        signature = inspect.signature(operator)
        parameters = [
            parameter.replace(annotation=spelt.get(parameter.annotation, parameter.annotation))
            for parameter in signature.parameters.values()
        ]
        operator.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return operator
