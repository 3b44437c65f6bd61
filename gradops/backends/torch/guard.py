"""csrc/math/spike_guard.h in torch's operations: 0-d tensors in the wide dtype, and nothing waits for the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.backends.call import StepCall
from gradops.backends.torch.math import clip_coef, wide_dtype
from gradops.policies.spike_guard import SpikeGuard
from gradops.stats import StepBuffers


@dataclass(slots=True)
class GuardState:
    """What a guard knows before a step; see csrc/math/spike_guard.h. Without a guard it has just begun."""

    lr_factor: Tensor
    usual_norm: Tensor
    deviation: Tensor
    norms_seen: Tensor  # int64

    @classmethod
    def of(cls, buffers: StepBuffers, guard: SpikeGuard | None) -> "GuardState":
        lr_factor, usual_norm, deviation, norms_seen = buffers.guard
        if guard is None:
            zero = torch.zeros_like(usual_norm)
            return cls(torch.ones_like(lr_factor), zero, zero, torch.zeros_like(norms_seen))
        return cls(lr_factor, usual_norm, deviation, norms_seen)

    def _limit(self, guard: SpikeGuard) -> Tensor:
        usual = self._wide(self.usual_norm)
        return torch.maximum(guard.ratio * usual, usual + guard.z_score * self._wide(self.deviation))

    @staticmethod
    def _wide(value: Tensor) -> Tensor:
        return value.to(wide_dtype(value.device))

    def is_spike(self, grad_norm: Tensor, found_inf: Tensor, guard: SpikeGuard) -> Tensor:
        """Whether the norm is one; a step with an inf or NaN is not."""
        return ~found_inf & (self.norms_seen >= guard.warmup_steps) & (grad_norm > self._limit(guard))

    def next(self, grad_norm: Tensor, guarded: Tensor, found_inf: Tensor, guard: SpikeGuard) -> "GuardState":
        """The state after the step."""
        factor = self._wide(self.lr_factor) * torch.where(guarded, guard.lr_cut, guard.lr_growth)
        factor = factor.clamp(guard.min_lr_factor, 1.0)
        norm, seen = grad_norm.float(), self.norms_seen + 1
        counts, first = ~found_inf & (norm > 0) & norm.isfinite(), seen == 1
        rate = 1.0 / self._wide(seen.clamp(max=guard.history))
        usual, deviation = self._wide(self.usual_norm), self._wide(self.deviation)
        away = (torch.minimum(grad_norm, self._limit(guard)) - usual).abs()
        moved = torch.where(norm > self.usual_norm, usual * (1.0 + rate), usual / (1.0 + rate))
        moved = torch.where(norm == self.usual_norm, usual, moved)
        deviation = torch.where(first, 0.0, deviation + (away - deviation) * rate)
        return GuardState(
            torch.where(found_inf, self.lr_factor, factor.float()),
            torch.where(counts, torch.where(first, norm, moved.float()), self.usual_norm),
            torch.where(counts, deviation.float(), self.deviation),
            torch.where(counts, seen, self.norms_seen),
        )


@dataclass(slots=True)
class Verdict:
    """What a step does, and why; 0-d tensors.

    Attributes:
        grad_norm: in the wide dtype.
        clip_coef: in the wide dtype, what the gradients are multiplied by, rounded to their arithmetic's.
        skip: bool, whether nothing is updated.
        found_inf: bool, whether an inf or NaN is why.
        guarded: bool, whether the guard found a spike.
        before: the guard's state, whose factor this step's learning rates take.
    """

    grad_norm: Tensor
    clip_coef: Tensor
    skip: Tensor
    found_inf: Tensor
    guarded: Tensor
    before: GuardState

    def next_guard(self, guard: SpikeGuard | None) -> GuardState:
        """The guard's state after the step."""
        if guard is None:
            return self.before
        return self.before.next(self.grad_norm, self.guarded, self.found_inf, guard)


def decide_step(call: StepCall, grad_norm: Tensor, found_inf: Tensor) -> Verdict:
    """Skips what has an inf or NaN, clips the rest as torch does, and asks the guard."""
    guard, before = call.settings.guard, GuardState.of(call.buffers, call.settings.guard)
    max_norm = call.settings.max_norm if call.settings.clip_mode == "norm" else None
    coef = torch.where(found_inf, 1.0, clip_coef(grad_norm, max_norm))
    if guard is None:
        return Verdict(grad_norm, coef, found_inf, found_inf, torch.zeros_like(found_inf), before)
    guarded = before.is_spike(grad_norm, found_inf, guard)
    if guard.skips:
        coef = torch.where(guarded, 1.0, coef)
        return Verdict(grad_norm, coef, found_inf | guarded, found_inf, guarded, before)
    to_usual = before.usual_norm / grad_norm
    coef = torch.where(guarded, torch.minimum(coef, to_usual), coef)
    return Verdict(grad_norm, coef, found_inf, found_inf, guarded, before)
