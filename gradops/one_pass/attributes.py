"""A wrapped optimizer's settings as attributes: checked when they are set, and shown by `repr`."""

import difflib
import functools
from dataclasses import fields
from typing import Any

import torch

from gradops.backends.choose import Choice
from gradops.settings import SETTINGS, Settings, check_setting
from gradops.stats import NO_BACKEND

# How alike a name and a setting's must be for the one to be a misspelling of the other. `max_grad_norm` is as far from
# `max_norm` as a name that is meant for it gets; torch and the frameworks set none that is this near.
NEAR = 0.75
# Shown whatever they are.
MAIN = ("max_norm", "max_relative_step", "guard", "loss_scale")


def check_attribute(optimizer: torch.optim.Optimizer, name: str, value: Any) -> None:
    """Checks one setting by itself as it is assigned; what several mean together, the next step does.

    Raises:
        AttributeError: a new attribute's name is nearly that of a setting.
        TypeError, ValueError: the setting is of the wrong kind, or out of its range.
    """
    if name in _IS_SETTING:
        check_setting(name, value)
    elif name[0] != "_" and name not in optimizer.__dict__:
        near = nearest(name)
        if near is not None and not hasattr(type(optimizer), name):
            kind = type(optimizer).__name__
            raise AttributeError(f"{kind} has no setting {name!r}; did you mean {near!r}?", name=name, obj=optimizer)


def described(optimizer: Any, choice: Choice, runs_on: str) -> str:
    """The optimizer's `repr`: settings that are not their defaults, then torch's groups.

    Args:
        optimizer: one that is set up.
        choice: of its backend.
        runs_on: how the backend runs the steps, once it has.
    """
    lines = [f"{type(optimizer).__name__} (", "Settings"]
    for field in sorted(fields(Settings), key=lambda field: field.name):
        value = getattr(optimizer, field.name)
        if field.name == "backend":
            wanted = value or choice.name
            known = wanted == choice.name and runs_on != NO_BACKEND
            lines.append(f"    backend: {wanted} ({runs_on})" if known else f"    backend: {wanted}")
        elif field.name in MAIN or value != field.default:
            lines.append(f"    {field.name}: {shown(value)}")
    for index, group in enumerate(optimizer.param_groups):
        lines.append(f"Parameter Group {index}")
        keys = (key for key in sorted(group) if key not in ("params", "param_names"))
        lines += [f"    {key}: {group[key]}" for key in keys if not key.startswith("gradops_")]
    return "\n".join([*lines, ")"])


_IS_SETTING = frozenset(SETTINGS)


@functools.cache
def nearest(name: str) -> str | None:
    """The setting that a name is a misspelling of; None for other names."""
    return next(iter(difflib.get_close_matches(name.lower(), SETTINGS, n=1, cutoff=NEAR)), None)


def shown(setting: Any) -> str:
    """The setting as text; of modules the class alone, since theirs fills pages."""
    if isinstance(setting, tuple):
        return f"({', '.join(map(shown, setting))})"
    return type(setting).__name__ if isinstance(setting, torch.nn.Module) else repr(setting)
