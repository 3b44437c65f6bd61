"""The optimizers by name, for doors and commands that offer every one."""

import importlib
from typing import Any

import torch

from gradops import optim
from gradops.one_pass.one_pass import OnePass


def classes() -> dict[str, type[OnePass]]:
    """Every optimizer of ours, by the name of its class."""
    named: dict[str, Any] = {name: getattr(optim, name) for name in optim.__all__}
    return {name: cls for name, cls in named.items() if isinstance(cls, type) and issubclass(cls, OnePass)}


def class_named(name: str) -> type[OnePass]:
    """The optimizer of that name, in capitals or not.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    by_name = {known.lower(): cls for known, cls in classes().items()}
    if name.lower() not in by_name:
        raise ValueError(f"{name} is none of {', '.join(sorted(classes(), key=str.lower))}")
    return by_name[name.lower()]


def torchs_class(cls: type[OnePass]) -> type[torch.optim.Optimizer] | None:
    """Torch's class of the same name, which ours is a subclass of; None where torch has none."""
    torchs = getattr(torch.optim, cls.__name__, None)
    return torchs if isinstance(torchs, type) and issubclass(cls, torchs) else None


def native_class(cls: type[OnePass]) -> type[torch.optim.Optimizer]:
    """What people use in its place: torch's class of the same name, else timm's.

    Raises:
        ImportError: torch has none, and timm is not installed.
    """
    torchs = torchs_class(cls)
    if torchs is not None:
        return torchs
    try:
        timms = vars(importlib.import_module("timm.optim"))
    except ModuleNotFoundError as error:
        raise ImportError(f"torch has no {cls.__name__}, and {error.name} is not installed, which has one") from error
    by_name = {name.lower(): value for name, value in timms.items() if isinstance(value, type)}
    found: type[torch.optim.Optimizer] = by_name[cls.__name__.lower()]
    return found
