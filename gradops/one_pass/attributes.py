"""A wrapped optimizer's settings as attributes: checked when they are set, and shown by `repr`."""

import difflib
import functools
from dataclasses import fields
from typing import Any

import torch

from gradops.backends.choose import Choice
from gradops.settings import SETTINGS, Settings, SettingsAttributes, check_setting
from gradops.stats import NO_BACKEND, StepBuffers

# How alike a name and a setting's must be for the one to be a misspelling of the other. `max_grad_norm` is as far from
# `max_norm` as a name that is meant for it gets; torch and the frameworks set none that is this near.
NEAR = 0.75
# Shown whatever they are.
MAIN = ("max_norm", "max_relative_step", "guard", "loss_scale", "backend")


class CheckedAttributes(SettingsAttributes, torch.optim.Optimizer):
    """Settings are checked one by one when they are assigned; what several mean together, at the next step.

    A new attribute whose name is nearly a setting's is an AttributeError that names the setting.
    """

    _buffers: StepBuffers
    _choice: Choice | None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _IS_SETTING:
            check_setting(name, value)
        elif name[0] != "_" and name not in self.__dict__:
            near = nearest(name)
            if near is not None and not hasattr(type(self), name):
                kind = type(self).__name__
                raise AttributeError(f"{kind} has no setting {name!r}; did you mean {near!r}?", name=name, obj=self)
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        if self.__dict__.get("_choice") is None:
            return super().__repr__()  # in the making
        lines = [f"{type(self).__name__} (", "Settings"]
        for field in sorted(fields(Settings), key=lambda field: field.name):
            value = getattr(self, field.name)
            if field.name in MAIN or value != field.default:
                lines.append(f"    {field.name}: {self._runs_on() if field.name == 'backend' else shown(value)}")
        for index, group in enumerate(self.param_groups):
            lines.append(f"Parameter Group {index}")
            keys = (key for key in sorted(group) if key not in ("params", "param_names"))
            lines += [f"    {key}: {group[key]}" for key in keys if not key.startswith("gradops_")]
        return "\n".join([*lines, ")"])

    def _runs_on(self) -> str:
        """The backend that is wanted or chosen, and how it runs the steps, once it has."""
        chosen = self._choice.name if self._choice is not None else None
        wanted, described = self.backend or chosen, self._buffers.stats.backend
        return f"{wanted} ({described})" if wanted == chosen and described != NO_BACKEND else f"{wanted}"


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
