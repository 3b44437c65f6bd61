"""Loss scaling: the policy for an optimizer of its own, and the scaler that several optimizers share."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch

from gradops.numbers import check_numbers


@dataclass(frozen=True)
class DynamicLossScale:
    """How a loss scale moves: torch.amp.GradScaler's rule, kept inside `[min_scale, max_scale]`.

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
        if not 1 <= self.growth_factor < math.inf:
            raise ValueError(f"growth_factor must be finite and at least 1, got {self.growth_factor}")
        if not 0 < self.backoff_factor <= 1:
            raise ValueError(f"backoff_factor must be above 0 and at most 1, got {self.backoff_factor}")
        if not self.growth_interval >= 1:
            raise ValueError(f"growth_interval must be at least 1, got {self.growth_interval}")
        if not 0 < self.min_scale <= self.init_scale:
            raise ValueError(f"min_scale must be above 0 and at most init_scale, got {self.min_scale}")
        if not self.init_scale <= self.max_scale < math.inf:
            raise ValueError(f"max_scale must be finite and at least init_scale, got {self.max_scale}")


class GradScaler(torch.amp.GradScaler):
    """Drop-in for torch.amp.GradScaler: with a gradops optimizer, `step` makes no extra pass over the gradients.

    The optimizer's own pass looks for inf and NaN and tells the scaler. Other optimizers are treated as torch's scaler
    treats them. The scale never leaves `[min_scale, max_scale]`, while torch's can fall to 0 and stay there.

    Args:
        device: as for torch's scaler, like the arguments up to `enabled`.
        min_scale: the scale never falls below it; None for 2**-14, or `init_scale` if that is less.
        max_scale: the scale never rises above it; None for 2**24, or `init_scale` if that is more.

    Raises:
        ValueError: `init_scale` is not between `min_scale` and `max_scale`.
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
        *,
        min_scale: float | None = None,
        max_scale: float | None = None,
    ) -> None:
        super().__init__(device, init_scale, growth_factor, backoff_factor, growth_interval, enabled)
        min_scale = min(2.0**-14, init_scale) if min_scale is None else min_scale
        max_scale = max(2.0**24, init_scale) if max_scale is None else max_scale
        if not 0 < min_scale <= init_scale <= max_scale:
            raise ValueError(
                f"min_scale, init_scale and max_scale must be positive and ascending, got {min_scale}, {init_scale}, "
                f"{max_scale}"
            )
        self.min_scale = min_scale
        self.max_scale = max_scale
        self._last_found_inf: tuple[torch.Tensor, ...] = ()

    @property
    def last_step_skipped(self) -> torch.Tensor:
        """Whether the last `step` was skipped for an inf or NaN: bool, 0-d, on the device; nothing waits for it.

        True to what the optimizer did, while a comparison of scales before and after `update` is wrong at the floor.
        """
        if not self._last_found_inf:
            return torch.zeros((), dtype=torch.bool, device=self._device)
        device = self._last_found_inf[0].device
        flags = [found_inf.reshape(()).to(device, non_blocking=True) for found_inf in self._last_found_inf]
        return torch.stack(flags).sum() > 0

    def step(self, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> float | None:
        """As torch's."""
        from gradops.one_pass import OnePass

        if isinstance(optimizer, OnePass):
            # Until the step fills it, it must not hold what the last step found.
            optimizer.stats.found_inf.zero_()
        result = super().step(optimizer, *args, **kwargs)
        self._last_found_inf = ()
        if isinstance(optimizer, OnePass):
            self._last_found_inf = (optimizer.stats.found_inf,)
            if self._enabled:
                self._add_found_inf(optimizer, optimizer.stats.found_inf)
        elif self._enabled:
            self._last_found_inf = tuple(self._per_optimizer_states[id(optimizer)]["found_inf_per_device"].values())
        return result

    def _check_inf_per_device(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        from gradops.one_pass import OnePass

        if not isinstance(optimizer, OnePass):
            return super()._check_inf_per_device(optimizer)
        # The optimizer's live buffer: its step fills it before update() reads it.
        found_inf = optimizer.stats.found_inf
        per_device: dict[Any, Any] = {found_inf.device: found_inf}
        self._per_optimizer_states[id(optimizer)]["found_inf_per_device"] = per_device
        return per_device

    def _add_found_inf(self, optimizer: torch.optim.Optimizer, found_inf: torch.Tensor) -> None:
        """Has update() know what the step found, too: after unscale_ somebody may have edited the gradients."""
        per_device = self._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
        before = per_device.get(found_inf.device)
        if before is not found_inf:
            per_device[found_inf.device] = found_inf.clone() if before is None else torch.maximum(before, found_inf)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; a scale outside of the bounds becomes the nearer bound.

        Raises:
            ValueError: the scale is NaN.
        """
        if self._enabled and "scale" in state_dict:
            scale = float(state_dict["scale"])
            if math.isnan(scale):
                raise ValueError("the state dict's scale is NaN; load another one, or begin with a new scaler")
            state_dict = {**state_dict, "scale": min(max(scale, self.min_scale), self.max_scale)}
        super().load_state_dict(state_dict)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Moves the scale as torch's scaler does, and keeps it inside its bounds."""
        super().update(new_scale)
        if self._enabled:
            scale: Any = self._scale
            scale.clamp_(self.min_scale, self.max_scale)
