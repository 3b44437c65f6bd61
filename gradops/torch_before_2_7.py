"""What torch 2.6 lacks and later versions have; with torch 2.7 or newer nothing here changes anything."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

BEFORE_2_7 = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7)
# From torch 2.7 on AdamW is a subclass of Adam.
ADAM_OR_ADAMW = (torch.optim.Adam, torch.optim.AdamW)


def refuse_before_2_7(keywords: Mapping[str, Any]) -> None:
    """Refuses the keyword of Adam that torch 2.6 lacks.

    Raises:
        TypeError: it is there.
    """
    if BEFORE_2_7 and "decoupled_weight_decay" in keywords:
        raise TypeError(
            f"decoupled_weight_decay of Adam needs torch 2.7 or newer, this is {torch.__version__}; "
            "gradops.AdamW has decoupled weight decay in every version"
        )


def name_decay_before_2_7(optimizer: torch.optim.Optimizer) -> None:
    """Says in the groups whether weight decay is decoupled, which in torch 2.6 the optimizer's class alone says."""
    if BEFORE_2_7:
        for group in optimizer.param_groups:
            group["decoupled_weight_decay"] = isinstance(optimizer, torch.optim.AdamW)


def unname_decay_before_2_7(optimizer: torch.optim.Optimizer) -> None:
    """Undoes `name_decay_before_2_7`."""
    if BEFORE_2_7:
        for group in optimizer.param_groups:
            group.pop("decoupled_weight_decay", None)


def annotate_before_2_7(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Spells annotations as torch 2.6 reads operators' schemas from them: List[Tensor] for list[Tensor]."""
    if BEFORE_2_7:
        spelt = {list[Tensor]: typing.List[Tensor]}  # noqa: UP006
        signature = inspect.signature(operator)
        parameters = [
            parameter.replace(annotation=spelt.get(parameter.annotation, parameter.annotation))
            for parameter in signature.parameters.values()
        ]
        operator.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return operator
