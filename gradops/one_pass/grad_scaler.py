"""`GradScaler`: one loss scale for several optimizers."""

import math
from typing import Any

import torch

from gradops.numbers import number, positive_and_finite
from gradops.one_pass.one_pass import OnePass
from gradops.policies.loss_scale import check_bounds, check_factors

_LARGEST = torch.finfo(torch.float32).max


class GradScaler(torch.amp.GradScaler):
    """Drop-in for torch.amp.GradScaler: with a gradops optimizer, `step` makes no extra pass over the gradients.

    The optimizer's own pass looks for inf and NaN, and the scaler reads what it found. Other optimizers are treated as
    torch's scaler treats them. The scale never leaves `[min_scale, max_scale]`, while torch's can fall to 0 and stay
    there.

    Args:
        device: as for torch's scaler, like the arguments up to `enabled`.
        min_scale: the scale never falls below it; None for 2**-14, or `init_scale` if that is less.
        max_scale: the scale never rises above it; None for 2**24, or `init_scale` if that is more; inf for float32's
            largest number.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of its range, or `init_scale` not between `min_scale` and `max_scale`. A disabled
            scaler looks at none of them, as torch's.
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
        self.min_scale = 2.0**-14 if min_scale is None else min_scale
        self.max_scale = 2.0**24 if max_scale is None else max_scale
        if self._enabled:
            self._init_scale = positive_and_finite("init_scale", init_scale)
            check_factors(number("growth_factor", growth_factor), number("backoff_factor", backoff_factor))
            self._set_bounds(min_scale, max_scale)
        self._last_found_inf: tuple[torch.Tensor, ...] = ()

    def _set_bounds(self, min_scale: float | None, max_scale: float | None) -> None:
        """Bounds that nobody gave make room for the first scale."""
        lowest, highest = number("min_scale", self.min_scale), number("max_scale", self.max_scale)
        self.min_scale = min(lowest, self._init_scale) if min_scale is None else lowest
        self.max_scale = max(highest, self._init_scale) if max_scale is None else min(highest, _LARGEST)
        check_bounds(self.min_scale, self._init_scale, self.max_scale)

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
            TypeError: a value is no number.
            ValueError: the scale is NaN, or a factor out of its range. Nothing has changed then.
        """
        if self._enabled and state_dict:
            scale, growth, backoff = (
                number(f"the state dict's {name}", state_dict[name])
                for name in ("scale", "growth_factor", "backoff_factor")
            )
            if math.isnan(scale):
                raise ValueError("the state dict's scale is NaN; load another one, or begin with a new scaler")
            check_factors(growth, backoff)
            state_dict = {**state_dict, "scale": min(max(scale, self.min_scale), self.max_scale)}
        super().load_state_dict(state_dict)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        """Moves the scale as torch's scaler does, and keeps it inside its bounds.

        Args:
            new_scale: in place of the one that follows; outside of the bounds it is the nearer bound. A tensor that
                holds NaN leaves the scale as it was.

        Raises:
            TypeError: `new_scale` is neither a number nor a tensor.
            ValueError: `new_scale` is NaN.
        """
        before = None
        if self._enabled and isinstance(new_scale, torch.Tensor):
            before = None if self._scale is None else self._scale.clone()
            new_scale = new_scale.reshape(()) if new_scale.numel() == 1 else new_scale
        elif self._enabled and new_scale is not None:
            new_scale = number("new_scale", new_scale)
            if math.isnan(new_scale):
                raise ValueError("new_scale is NaN")
        super().update(new_scale)
        if self._enabled:
            scale: Any = self._scale
            if before is not None:
                scale.copy_(torch.where(scale.isnan(), before, scale))
            scale.clamp_(self.min_scale, self.max_scale)
