"""Numbers that people give: what counts as one, and in which range."""

import math
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


def positive(name: str, value: Any) -> float:
    """A number above 0, inf among them.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of its range.
    """
    given = number(name, value, off(name))
    if not given > 0:
        raise ValueError(f"{name} must be positive, got {value}{off(name)}")
    return given


def positive_and_finite(name: str, value: Any) -> float:
    """A number above 0 and below inf.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of its range.
    """
    given = number(name, value, off(name))
    if not 0 < given < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}{off(name)}")
    return given


def not_negative(name: str, value: Any) -> float:
    """A number of at least 0 and below inf.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of its range.
    """
    given = number(name, value, off(name))
    if not 0 <= given < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value}{off(name)}")
    return given


def check_numbers(policy: Any, *names: str) -> None:
    """Refuses attributes that are no numbers.

    Raises:
        TypeError: naming the first.
    """
    for name in names:
        number(name, getattr(policy, name))
