"""What an optimizer does to one element, as data: what creating, fitting, checking and saving its state read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


def _always(group: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Moment:
    """An entry of a parameter's state that is shaped as the parameter, and that the update moves.

    Attributes:
        name: the key of the state, torch's.
        used: whether the updates of a param group have it.
        because: what makes a group use it, for messages ("amsgrad is on"); empty for one that every group uses.
        late: whether it is made, as zeros, where a group comes to use it later; else the step refuses a state without.
    """

    name: str
    used: Callable[[Mapping[str, Any]], bool] = _always
    because: str = ""
    late: bool = False


@dataclass(frozen=True)
class UpdateRule:
    """An update rule.

    Attributes:
        name: that of its files: csrc/math/rules, backends/torch/rules, backends/triton/rules, reference/rules.
        title: what messages call it.
        moments: in the order of the slots that kernels have for them.
        group_keys: of a param group, by which a state dict is known to be the rule's.
        hyper: what the update takes of a param group beside what every rule takes (lr, weight_decay, maximize, l1), in
            the order of the rule's `Hyper`; "betas.0" is the first of `betas`. Each is a number or a flag.
        scale_free: whether the size of an update does not depend on that of the gradients.
        decoupled_key: of a param group, whether its weight decay is decoupled; None for a rule that only knows L2.
        counters: entries of torch's state beside the moments; ours has a "step" whether or not torch's has.
    """

    name: str
    title: str
    moments: tuple[Moment, ...]
    group_keys: tuple[str, ...]
    hyper: tuple[str, ...]
    scale_free: bool
    decoupled_key: str | None = None
    counters: tuple[str, ...] = ("step",)

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Of all moments."""
        return tuple(moment.name for moment in self.moments)

    def moments_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of those that a param group's updates have."""
        return tuple(moment.name for moment in self.moments if moment.used(group))

    @property
    def counts_as_torch(self) -> bool:
        """Whether torch's state has a "step" too."""
        return "step" in self.counters

    @property
    def has_late_moments(self) -> bool:
        """Whether a group may come to use a moment that its states lack."""
        return any(moment.late for moment in self.moments)

    def late_moments_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of those that the group's updates have, and that are made where a state lacks them."""
        return tuple(moment.name for moment in self.moments if moment.late and moment.used(group))

    def hyper_of(self, group: Mapping[str, Any]) -> list[float]:
        """The values of `hyper` in a param group; raises TypeError where they are no numbers."""
        return [float(_entry(group, key)) for key in self.hyper]

    def decouples(self, group: Mapping[str, Any]) -> bool:
        """Whether a param group's weight decay is decoupled."""
        return self.decoupled_key is not None and bool(group[self.decoupled_key])


def _entry(group: Mapping[str, Any], key: str) -> Any:
    name, _, index = key.partition(".")
    if not index:
        return group[name]
    values = group[name]
    if not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    return values[int(index)]
