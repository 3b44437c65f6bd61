"""The policy behind `ema`: an average of the weights over the steps, kept while they are updated."""

from dataclasses import dataclass, field

from gradops.numbers import check_numbers
from gradops.policies.protect import Protect, protect_setting


@dataclass(frozen=True)
class WeightEma:
    """Keeps an exponential moving average of every weight, `state[param]["ema"]`: `ema += (1 - d) * (param - ema)`.

    It begins as the parameter is before its first update. Each update averages into it what it has stored, the float32
    master where there is one; skipped steps leave it. It is float32, and float64 beside a float64 parameter. `d` is
    `decay`, or smaller in a warm-up, which counts `n`: the averagings of the tensor, this one included, without the
    first `start`.

    Evaluate with `gradops.ema_weights`; `gradops.ema_model` makes a model of it.

    Args:
        decay: from 0 to below 1; the average is over about the last `1 / (1 - decay)` averagings.
        inv_gamma: a warm-up after timm and diffusers: `d = min(decay, 1 - (1 + n / inv_gamma) ** -power)`, at least
            `min_decay`. By default None: not this one.
        power: of that warm-up; 2/3 for a million steps and more, 3/4 for fewer.
        min_decay: of that warm-up.
        tau: a warm-up after ultralytics: `d = decay * (1 - exp(-n / tau))`. By default None: not this one.
        start: how many averagings, at first, copy the parameter: 1 in timm and torch, and one more than timm's
            `update_after_step`.
        every: updates from one averaging to the next.
        buffers: the model, a module or an iterable of them, whose floating-point buffers are averaged too, such as
            BatchNorm's running statistics. By default None: the model has its own.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an argument is out of its range, or two do not go together.
    """

    decay: float = 0.9998
    inv_gamma: float | None = None
    power: float = 2 / 3
    min_decay: float = 0.0
    tau: float | None = None
    start: int = 0
    every: int = 1
    buffers: Protect = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_numbers(self, "decay", "power", "min_decay", "start", "every")
        for name in ("decay", "min_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name in ("inv_gamma", "tau"):
            if getattr(self, name) is not None:
                check_numbers(self, name)
                if not 0.0 < getattr(self, name) < float("inf"):
                    raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0.0 < self.power < float("inf"):
            raise ValueError(f"power must be positive and finite, got {self.power}")
        for name, least in (("start", 0), ("every", 1)):
            if not (getattr(self, name) >= least and float(getattr(self, name)).is_integer()):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {getattr(self, name)}")
        if self.inv_gamma is not None and self.tau is not None:
            raise ValueError("inv_gamma and tau are two warm-ups; set one of them")
        if self.min_decay and self.inv_gamma is None:
            raise ValueError("min_decay is of the warm-up that inv_gamma gives; set both or none")
        object.__setattr__(self, "buffers", protect_setting(self.buffers, "buffers"))

    @property
    def numbers(self) -> tuple[float, ...]:
        """What a step takes, in the order of `EmaPolicy` in csrc/math/ema.h; 0 for a warm-up that is not there."""
        warmup = (self.min_decay, self.inv_gamma or 0.0, self.power, self.tau or 0.0)
        return tuple(map(float, (self.decay, *warmup, self.start, self.every)))
