"""What torch 2.6 lacks and later versions have; with torch 2.7 or newer nothing here changes anything."""

import inspect
import typing
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BEFORE_2_7 = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7)


def name_decay_before_2_7(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Says in the groups whether weight decay is decoupled, which in torch 2.6 the optimizer's class alone says."""
    if BEFORE_2_7:
        for group in groups:
            group.setdefault("decoupled_weight_decay", isinstance(optimizer, torch.optim.AdamW))


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
