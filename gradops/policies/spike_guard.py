"""The policy behind `guard`: what a spike of the gradient norm is, and what is done about one."""

import math
from dataclasses import dataclass, fields

from gradops.numbers import check_numbers


@dataclass(frozen=True)
class SpikeGuard:
    """Clips or skips steps whose gradient norm is far out of its history, and cuts the learning rate for a while.

    A norm is a spike when it is above both `ratio * usual_norm` and `usual_norm + z_score * deviation`. The usual norm
    is a running median: each norm moves it up or down by a factor of `1 + 1 / history`, whatever its size, so that one
    spike says no more than any other norm, and a level that stays becomes the usual one. The deviation is a running
    mean of `|norm - usual_norm|`, in which a norm counts for no more than the limit; for normally distributed norms it
    is 0.8 standard deviations. Both move faster while fewer than `history` norms have been seen.

    A spike is clipped to the usual norm, or skipped as a step with an inf or NaN is. At each spike a factor of every
    learning rate is multiplied by `lr_cut`, from the next step on; each other step lets it grow by the same ratio, so
    that one cut has recovered after `recovery_steps`. The groups' `lr` stays as it is. The cap of `max_relative_step`
    is put on the product.

    A step in which an inf or NaN is found changes nothing of this. Norms are those of `optimizer.stats.grad_norm`:
    after unscaling and `clip_value`, before clipping. State lives on the device and rides in `state_dict()`;
    `optimizer.stats.guarded` and `.lr_factor` show what was done. Without a guard the history is forgotten.

    Source: z-scores of the norm are ZClip's (Kumar et al. 2025); the median, by steps of fixed size, is Robbins and
    Monro's (1951) estimate of a quantile, on a logarithmic scale.

    Args:
        action: "clip" or "skip".
        ratio: to the usual norm; at least 1.
        z_score: in deviations from the usual norm; not negative, 0 to go by the ratio alone.
        lr_cut: above 0, at most 1; 1 for no cut.
        recovery_steps: steps after which one cut has recovered; at least 1.
        min_lr_factor: the factor never falls below it; above 0, at most 1.
        history: norms over which the usual norm follows a change; at least 1.
        warmup_steps: norms that must have been seen before the first spike can be; at least 1.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range, or the recovery too slow for float32.
    """

    action: str = "clip"
    ratio: float = 5.0
    z_score: float = 0.0
    lr_cut: float = 0.5
    recovery_steps: int = 50
    min_lr_factor: float = 0.1
    history: int = 32
    warmup_steps: int = 32

    def __post_init__(self) -> None:
        check_numbers(self, *(field.name for field in fields(self) if field.name != "action"))
        if self.action not in ("skip", "clip"):
            raise ValueError(f'action must be "skip" or "clip", got {self.action!r}; guard=None for no guard')
        if not 1 <= self.ratio < math.inf:
            raise ValueError(f"ratio must be finite and at least 1, got {self.ratio}")
        if not 0 <= self.z_score < math.inf:
            raise ValueError(f"z_score must be finite and not negative, got {self.z_score}")
        for name in ("lr_cut", "min_lr_factor"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}; 1 for no cut")
        for name in ("recovery_steps", "history", "warmup_steps"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr_cut < 1 and self.lr_growth < 1 + 2.0**-23:
            raise ValueError(
                f"recovery_steps must be small enough for float32 to count the recovery, got {self.recovery_steps} "
                f"with lr_cut={self.lr_cut}"
            )

    @property
    def skips(self) -> bool:
        """Whether a spike is skipped rather than clipped."""
        return self.action == "skip"

    @property
    def lr_growth(self) -> float:
        """What a step without a spike multiplies the factor of the learning rates by, up to 1."""
        return float(self.lr_cut ** (-1.0 / self.recovery_steps))
