"""What the tests know of each update rule: a file of data for each, for the one body of all in the test files.

A new rule's file has `CLASSES`, `OPTIONS`, `HYPER`, `scale` and `moment`, as `Table` says.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import gradops


@dataclass(frozen=True)
class Step:
    """What a comparison of one parameter's step knows of its magnitudes.

    Attributes:
        state: the oracle's, after the step.
        group: the param group.
        largest: gradient element, with the penalties that are added to it.
        before: of each moment the largest element before the step.
        penalised: whether decay or L1 was added to the gradient, which may cancel it.
        powers: whether the norm went through pow.
        grad: what the oracle's update got, in float64: clipped and regularised; None where it got nothing.
        moments: the oracle's before the step, likewise.
        factor: what the oracle's regularised gradient was multiplied by.
    """

    state: Any
    group: dict[str, Any]
    largest: float
    before: dict[str, float]
    penalised: bool
    powers: bool
    grad: Tensor | None
    moments: dict[str, Tensor]
    factor: float


@dataclass(frozen=True)
class Table:
    """One rule.

    Attributes:
        rule: its name.
        classes: of gradops.
        options: keywords of the constructor, by a name for each set.
        hyper: strategies of a group's own numbers, for `cases.group_options`.
        scale: of a step, what an element's error after it is relative to, per lr; a number or a tensor.
        moment: of a step and a moment's name, the tolerance and the magnitude that its atol is relative to.
    """

    rule: str
    classes: tuple[type, ...]
    options: dict[str, dict[str, Any]]
    hyper: dict[str, Any]
    scale: Callable[[Step], Any]
    moment: Callable[[Step, str], tuple[Any, float]]


def _table(name: str) -> Table:
    data = importlib.import_module(f"rules.{name}")
    return Table(name, data.CLASSES, data.OPTIONS, data.HYPER, data.scale, data.moment)


_NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if not path.stem.startswith("test_"))
TABLES = {name: _table(name) for name in _NAMES}
CLASSES = [cls for table in TABLES.values() for cls in table.classes]
# Of each class and each set of options; and without the options.
EVERY_CASE = [
    (cls, options) for table in TABLES.values() for cls in table.classes for options in table.options.values()
]
CASE_NAMES = [f"{cls.__name__}-{name}" for table in TABLES.values() for cls in table.classes for name in table.options]


def table_of(cls: type) -> Table:
    return TABLES[cls.rule.name]


def torchs(cls: type) -> type | None:
    """The class of torch's that one of ours is; None where torch has none."""
    bases = (base for base in cls.__mro__ if base.__module__.startswith("torch.optim."))
    first = next(bases)
    return None if first.__name__ == "Optimizer" else first


TORCHS = {torchs(cls): cls for cls in CLASSES if torchs(cls) is not None}


def goes_with(cls: type, settings: dict[str, Any]) -> bool:
    """Whether a rule takes these settings, as `gradops.settings` checks them."""
    hides_norms = settings.get("norm_type", 2.0) != 2.0 or settings.get("clip_mode") == "agc"
    bounds = settings.get("max_relative_step") is not None and not cls.rule.scale_free
    return not (hides_norms and (cls.rule.needs_norms or bounds))


def reference_of(cls: type) -> Any:
    """The rule's module in the oracle."""
    return importlib.import_module(f"{gradops.reference.__name__}.rules.{cls.rule.name}")
