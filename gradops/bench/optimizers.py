"""The optimizers that are measured: ours, and what people use in its place."""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradops.one_pass.one_pass import OnePass
from gradops.optim.classes import class_named, classes, native_class

ALL = "all"
# What torch calls the ways in which its optimizers step, from the slowest to the fastest.
FORMS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
# Arguments without which nobody uses them; others have their defaults.
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}, "LARS": {"momentum": 0.9}}


@dataclass(frozen=True)
class Subject:
    """An optimizer of ours and its native class.

    Attributes:
        ours: of gradops.
        theirs: of torch or timm.
        options: arguments of both.
    """

    ours: type[OnePass]
    theirs: type[torch.optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.ours.__name__

    @property
    def library(self) -> str:
        """What has the native class: torch or timm."""
        return self.theirs.__module__.partition(".")[0]

    @property
    def forms(self) -> dict[str, dict[str, Any]]:
        """Keywords of the native class's ways to step, by what tables call them, the fastest last."""
        taken = inspect.signature(self.theirs).parameters
        if self.library != "torch":
            return {self.library: {}}
        return {f"torch {form}": how for form, how in FORMS.items() if how.keys() <= taken.keys()}

    @property
    def moments(self) -> int:
        """How many numbers of state each element's update reads and writes."""
        param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float32, device="cpu"))
        (group,) = self.ours([param], lr=1e-5, **self.options).param_groups
        return len(self.ours.rule.moments_of(group))

    def native(self, params: list[Tensor], **how: Any) -> torch.optim.Optimizer:
        """The native optimizer, whose steps move nothing by much."""
        cls: Any = self.theirs
        optimizer: torch.optim.Optimizer = cls(params, lr=1e-5, **self.options, **how)
        return optimizer

    def one_pass(self, params: list[Tensor], **settings: Any) -> OnePass:
        """The same with ours."""
        return self.ours(params, lr=1e-5, **self.options, **settings)


def subject(name: str) -> Subject:
    """The one of that name, in capitals or not.

    Raises:
        ValueError: gradops has no such optimizer.
        ImportError: what has its native class is not installed.
    """
    ours = class_named(name)
    return Subject(ours, native_class(ours), OPTIONS.get(ours.__name__, {}))


def subjects(name: str) -> tuple[list[Subject], dict[str, str]]:
    """The one of that name, or all, and why others of these cannot be measured, by name."""
    found, absent = [], {}
    for one in sorted(classes(), key=str.lower) if name == ALL else [name]:
        try:
            found.append(subject(one))
        except ImportError as error:
            absent[one] = str(error)
    return found, absent
