"""Numbers and flags that people give: what counts as one, and in which range."""

import math
from collections.abc import Callable
from typing import Any

# What switches a setting off, in scripts where that is 0, False or None.
_OFF = {
    "max_norm": "; None for no clipping",
    "clip_value": "; None for no clamping",
    "max_relative_step": "; None for no cap",
    "loss_scale": "; None for no scaling",
    "l1": "; 0 for no penalty",
    "clip_mode": "; max_norm=None for no clipping",
    "rounding": "; nearest is torch's",
}


def off(name: str) -> str:
    """What ends a message about a setting: what switches it off. Empty for one that is never on or off."""
    return _OFF.get(name, "")


def number(name: str, value: Any, hint: str = "") -> float:
    """The value as a float. Texts and flags are none, whatever `float` says of them; numpy's numbers are.

    Args:
        name: of the argument, for the message.
        value: what was given.
        hint: what ends the message.

    Raises:
        TypeError: it is no number.
    """
    kind = type(value)
    is_flag = isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"
    if not is_flag and (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass  # a tensor of several elements, say
    raise TypeError(f"{name} must be a number, got {value!r}{hint}")


def _number_in(name: str, value: Any, inside: Callable[[float], bool], what: str) -> float:
    """The value as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is not `inside` the range, of which the message says `what` it must be.
    """
    given = number(name, value, off(name))
    if not inside(given):
        raise ValueError(f"{name} must be {what}, got {value}{off(name)}")
    return given


def positive(name: str, value: Any) -> float:
    """A number above 0, inf among them; raises as `_number_in`."""
    return _number_in(name, value, lambda given: given > 0, "positive")


def positive_and_finite(name: str, value: Any) -> float:
    """A number above 0 and below inf; raises as `_number_in`."""
    return _number_in(name, value, lambda given: 0 < given < math.inf, "positive and finite")


def not_negative(name: str, value: Any) -> float:
    """A number of at least 0 and below inf; raises as `_number_in`."""
    return _number_in(name, value, lambda given: 0 <= given < math.inf, "finite and not negative")


def fraction(name: str, value: Any) -> float:
    """A number of at least 0 and below 1; raises as `_number_in`."""
    return _number_in(name, value, lambda given: 0 <= given < 1, "at least 0 and below 1")


def flag(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        TypeError: it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_numbers(policy: Any, *names: str) -> None:
    """Refuses attributes that are no numbers.

    Raises:
        TypeError: naming the first.
    """
    for name in names:
        number(name, getattr(policy, name))
