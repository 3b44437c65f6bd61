"""The optimizers of this process, so that settings follow their groups into an optimizer that is made of them.

Code that rebuilds an optimizer writes `type(o)(o.param_groups)` or `type(o)(params, **o.defaults)`, by which torch's
classes lose nothing.
"""

import itertools
import warnings
import weakref
from typing import Any

import torch
from torch import Tensor

from gradops.one_pass.checkpoint import CHECKPOINT_KEYS
from gradops.settings import SETTINGS

# By the order in which they were made.
_alive: "weakref.WeakValueDictionary[int, torch.optim.Optimizer]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


def remember(optimizer: torch.optim.Optimizer) -> None:
    """Takes note of an optimizer, and puts its settings beside torch's arguments into its `defaults`."""
    optimizer.defaults.update((name, getattr(optimizer, name)) for name in SETTINGS)
    _alive[next(_numbers)] = optimizer


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Undoes `remember`."""
    for name in SETTINGS:
        optimizer.defaults.pop(name, None)
    for number, other in list(_alive.items()):
        if other is optimizer:
            del _alive[number]


def alive() -> list[Any]:
    """Every optimizer of ours that there is, in the order in which they were made."""
    return list(_alive.values())


def settings_of_groups(params: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of the optimizer whose `param_groups` these are, or copies of them; none for other parameters.

    Warns where groups come from an optimizer of ours that is not there any more, and no setting is given.
    """
    groups = [group for group in params if isinstance(group, dict)] if isinstance(params, (list, tuple)) else []
    if not any(key in group for group in groups for key in CHECKPOINT_KEYS):
        return {}
    ids = {id(param) for group in groups for param in _listed(group["params"])}
    for optimizer in reversed(alive()):
        if any(id(param) in ids for group in optimizer.param_groups for param in group["params"]):
            return {name: getattr(optimizer, name) for name in SETTINGS}
    if not given:
        warnings.warn(
            "these param_groups come from a gradops optimizer whose settings (max_norm, loss_scale, ...) are not known "
            "here; pass them as keywords",
            stacklevel=4,
        )
    return {}


def _listed(params: Any) -> list[Tensor]:
    return [params] if isinstance(params, Tensor) else list(params)
