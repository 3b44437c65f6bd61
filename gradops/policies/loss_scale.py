"""How a loss scale moves."""

import math
from dataclasses import dataclass, fields

from gradops.numbers import check_numbers


@dataclass(frozen=True)
class DynamicLossScale:
    """How a loss scale moves: torch.amp.GradScaler's policy, kept inside `[min_scale, max_scale]`.

    A step with an inf or NaN multiplies the scale by `backoff_factor`; `growth_interval` steps without one multiply it
    by `growth_factor`.

    Source: torch.amp.GradScaler's documentation.

    Args:
        init_scale: the first scale; positive.
        growth_factor: at least 1.
        backoff_factor: above 0, at most 1.
        growth_interval: steps; at least 1.
        min_scale: the scale never falls below it; positive, at most `init_scale`.
        max_scale: the scale never rises above it; at least `init_scale`.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range.
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000
    min_scale: float = 2.0**-14
    max_scale: float = 2.0**24

    def __post_init__(self) -> None:
        check_numbers(self, *(field.name for field in fields(self)))
        if not 0 < self.init_scale < math.inf:
            raise ValueError(f"init_scale must be positive and finite, got {self.init_scale}")
        check_factors(self.growth_factor, self.backoff_factor)
        if not self.growth_interval >= 1:
            raise ValueError(
                f"growth_interval must be at least 1, got {self.growth_interval}; growth_factor=1 for a scale that "
                "never grows"
            )
        check_bounds(self.min_scale, self.init_scale, self.max_scale)
        if not self.max_scale < math.inf:
            raise ValueError(f"max_scale must be finite, got {self.max_scale}")


def check_factors(growth_factor: float, backoff_factor: float) -> None:
    if not 1 <= growth_factor < math.inf:
        raise ValueError(f"growth_factor must be finite and at least 1, got {growth_factor}")
    if not 0 < backoff_factor <= 1:
        raise ValueError(f"backoff_factor must be above 0 and at most 1, got {backoff_factor}")


def check_bounds(min_scale: float, init_scale: float, max_scale: float) -> None:
    if not 0 < min_scale <= init_scale:
        raise ValueError(f"min_scale must be above 0 and at most init_scale, which is {init_scale}, got {min_scale}")
    if not init_scale <= max_scale:
        raise ValueError(f"max_scale must be at least init_scale, which is {init_scale}, got {max_scale}")
