"""What optimizers share whose classes torch does not have: checked hyper-parameters, checkpoints that lack some."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from gradops.one_pass.one_pass import OnePass
from gradops.settings import SETTINGS

# By a key of a group, what raises for what is no value of it.
Checks = dict[str, Callable[[str, Any], Any]]


def starts_of(init: Callable[..., Any]) -> dict[str, Any]:
    """The hyper-parameters of a constructor, with its defaults."""
    arguments = inspect.signature(init).parameters.values()
    return {
        argument.name: argument.default
        for argument in arguments
        if argument.default is not argument.empty and argument.name not in SETTINGS
    }


class OwnOptimizer(OnePass):
    """An optimizer of ours alone.

    Attributes:
        starts: `starts_of` its constructor; the groups of a checkpoint may lack these keys.
        checks: of a group's hyper-parameters.
    """

    starts: ClassVar[dict[str, Any]]
    checks: ClassVar[Checks]

    def __init__(self, params: Any, defaults: dict[str, Any], **settings: Any) -> None:
        misspelt = next((name for name in settings if name not in SETTINGS), None)
        if misspelt is not None:
            raise TypeError(f"{type(self).__name__}.__init__() got an unexpected keyword argument {misspelt!r}")
        self.check_group(defaults)
        super().__init__(params, defaults, **settings)

    @classmethod
    def check_group(cls, group: dict[str, Any]) -> None:
        """Whether a param group's hyper-parameters are in their ranges.

        Raises:
            TypeError: one is of the wrong kind.
            ValueError: one is out of its range, does not go with another, or asks for what the rule does not do.
        """
        for name, check in cls.checks.items():
            check(name, group[name])
        cls.rule.check_off(group, "a param_group")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group's own hyper-parameters must be in their ranges."""
        if isinstance(param_group, dict):  # else torch says what it is
            self.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's, which loads state dicts by it, too: a key that a group lacks gets its start value."""
        for group in state["param_groups"]:
            for name, value in self.starts.items():
                group.setdefault(name, value)
        super().__setstate__(state)
