"""What an optimizer does to one element, as data: what creating, fitting, checking and saving its state read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


def _always(group: Mapping[str, Any]) -> bool:
    return True


def _at_zero(defaults: Mapping[str, Any]) -> float:
    return 0.0


@dataclass(frozen=True)
class Moment:
    """An entry of a parameter's state that is shaped as the parameter, and that the update moves.

    Attributes:
        name: the key of the state, torch's.
        used: whether the updates of a param group have it.
        because: what makes a group use it, for messages ("amsgrad is on"); empty for one that every group uses.
        late: whether it is made, as zeros, where a group comes to use it later; else the step refuses a state without.
        start: where it begins, of the constructor's keywords: torch asks no group.
    """

    name: str
    used: Callable[[Mapping[str, Any]], bool] = _always
    because: str = ""
    late: bool = False
    start: Callable[[Mapping[str, Any]], float] = _at_zero


@dataclass(frozen=True)
class Scalar:
    """An entry of a parameter's state that is one float32 number, as "step" is, and that each update moves.

    Attributes:
        name: the key of the state, torch's.
        start: its value before the first update.
    """

    name: str
    start: float


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
        scale_free: whether the size of no update depends on that of the gradients; where some do, the rule's files have
            an `adapts` that says which do not.
        decoupled_key: of a param group, whether its weight decay is decoupled; None where that is always the same.
        always_decouples: whether it is, in every group, for a rule without such a key.
        needs_norms: whether it multiplies gradients by a factor that it makes of the norms of parameter and gradient;
            its files then have a `grad_factor`.
        counters: entries of torch's state beside moments and scalars; ours has a "step" whether or not torch's has.
        scalars: numbers beside the "step"; one at most.
        off_keys: of a param group, what other people's optimizers by this rule can do beside it and this one cannot.
    """

    name: str
    title: str
    moments: tuple[Moment, ...]
    group_keys: tuple[str, ...]
    hyper: tuple[str, ...]
    scale_free: bool
    decoupled_key: str | None = None
    always_decouples: bool = False
    needs_norms: bool = False
    counters: tuple[str, ...] = ("step",)
    scalars: tuple[Scalar, ...] = ()
    off_keys: tuple[str, ...] = ()

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Of all moments."""
        return tuple(moment.name for moment in self.moments)

    def moments_of(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of those that a param group's updates have."""
        return tuple(moment.name for moment in self.moments if moment.used(group))

    def starts_of(self, group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, float]:
        """Where those begin, by name, for the constructor's keywords."""
        return {moment.name: moment.start(defaults) for moment in self.moments if moment.used(group)}

    @property
    def number_names(self) -> tuple[str, ...]:
        """The entries of a state that are one float32 each."""
        return ("step", *(scalar.name for scalar in self.scalars))

    @property
    def counts_as_torch(self) -> bool:
        """Whether torch's state has a "step" too."""
        return "step" in self.counters

    @cached_property
    def late_moments(self) -> tuple[Moment, ...]:
        """Those that a group may come to use when its states lack them."""
        return tuple(moment for moment in self.moments if moment.late)

    def hyper_of(self, group: Mapping[str, Any]) -> list[float]:
        """The values of `hyper` in a param group; raises TypeError where they are no numbers."""
        return [number_of(group, key) for key in self.hyper]

    def decouples(self, group: Mapping[str, Any]) -> bool:
        """Whether a param group's weight decay is decoupled."""
        return self.always_decouples if self.decoupled_key is None else bool(group[self.decoupled_key])

    def check_off(self, group: Mapping[str, Any], whose: str) -> None:
        """Refuses a param group that asks for one of `off_keys`.

        Raises:
            ValueError: it does; `whose` is what the message calls it.
        """
        asked = next((key for key in self.off_keys if group.get(key)), None)
        if asked is not None:
            raise ValueError(f"{whose} has {asked}={group[asked]!r}, which gradops's {self.title} does not know")


def number_of(group: Mapping[str, Any], key: str) -> float:
    """A number of a param group; "betas.1" is the second of a pair.

    Raises:
        TypeError: it is none.
    """
    name, _, index = key.partition(".")
    value = group[name]
    if index:
        if not isinstance(value, Sequence):
            raise TypeError(f"gradops: {name} must be a sequence of numbers, got {value!r}")
        value = value[int(index)]
    if not isinstance(value, str):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    raise TypeError(f"gradops: '{name}' of a param_group must be a number, got {value!r}")
