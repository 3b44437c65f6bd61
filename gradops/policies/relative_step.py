"""The policy behind `max_relative_step`: how far one step may move a tensor, relative to its size."""

import math
from dataclasses import dataclass

from gradops.numbers import check_numbers


@dataclass(frozen=True)
class RelativeStepCap:
    """Caps each tensor's learning rate by the size of its weights.

    In a step the learning rate of a tensor is `min(lr, cap * warm * max(RMS(param), floor))`, with
    `warm = min(1, step / warmup_steps)` and `step` the tensor's own count of updates, this one included. RMS is taken
    of the stored values before the update. Where the cap does not bind, the step is exactly the optimizer's. Decoupled
    weight decay uses the capped learning rate.

    An Adam update has about the size of its learning rate, one of SGD that of the gradient. For rules like SGD the
    bound is divided by the RMS of what the rate multiplies: `clip_coef * RMS(grad) + weight_decay * RMS(param) + l1`.
    The gradient is the unscaled and clamped one. The decay counts only where it is added to the gradient. If the rule
    multiplies gradients by a factor, as LARS does, so is the sum. A tensor whose sum is 0 has no bound.

    Source: the relative step size of Adafactor (Shazeer and Stern 2018, section 8), as a cap; with the gradient's size,
    LARS (You et al. 2017) as NVIDIA's LARC clips it.

    Args:
        cap: largest learning rate per unit of RMS; positive.
        warmup_steps: updates over which the cap grows linearly from `cap / warmup_steps`; 0 for no warm-up.
        floor: RMS below which a tensor counts as this large, so that zeros can leave zero; not negative.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range.
    """

    cap: float
    warmup_steps: int = 0
    floor: float = 0.01

    def __post_init__(self) -> None:
        check_numbers(self, "cap", "warmup_steps", "floor")
        if not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be positive and finite, got {self.cap}; max_relative_step=None for no cap")
        if not self.warmup_steps >= 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps}")
        if not 0 <= self.floor < math.inf:
            raise ValueError(f"floor must be finite and not negative, got {self.floor}")
