"""The specification: one gradops step in plain torch, slow and readable.

Every kernel is tested against this file, and this file against ``torch.optim.Adam``/``AdamW`` with ``clip_grad_norm_``
and ``GradScaler``. The phases are those of the kernels; `Reference` strings them together on copies. Gradients are
unscaled, clamped and clipped in float32, in that order, because the kernels' rounding there is part of the contract.
Everything after that is float64 from the stored values, rounded once when stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradops.reference.guard import GuardState, is_spike, next_guard_state, to_float32
from gradops.reference.rules import adam
from gradops.reference.update import (
    ParamState,
    agc_coefs,
    average,
    grad_factor,
    relative_lr,
    update_param,
    update_rms,
    update_stats,
    vector_norm,
)


@dataclass
class GradStats:
    """What one read of the gradients yields, in one row per parameter, 0 where there is no gradient.

    Norms are of unscaled and clamped values, ``abs_max`` and ``nonfinite`` of unscaled ones; a norm or maximum is NaN
    if any element is NaN, else inf if any is inf.
    """

    grad_norm: float
    norms: list[float]
    abs_max: list[float]
    nonfinite: list[int]

    @property
    def found_inf(self) -> bool:
        return any(self.nonfinite)


@dataclass
class StepDecision:
    """All the update needs to know of the stats."""

    inv_scale: float
    clip_value: float | None
    clip_coef: float
    skip: bool


@dataclass
class StepStats:
    """What `optimizer.stats` shows after a step, as Python values; ``loss_scale`` is the one the step used."""

    grads: GradStats
    capped: list[bool]
    update_ratio: list[float]
    param_rms: list[float]
    clip_coef: float = 1.0
    found_inf: bool = False
    loss_scale: float = 1.0
    steps_taken: int = 0
    steps_skipped: int = 0
    guarded: bool = False
    lr_factor: float = 1.0


def inverse_scale(loss_scale: float) -> float:
    return 1.0 / loss_scale if loss_scale != 0.0 else math.inf


def unscale(grad: Tensor, inv_scale: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """float32(grad) * float32(1 / float64(loss_scale)), as torch's GradScaler rounds it."""
    return grad.detach().to(dtype) * torch.tensor(inv_scale, dtype=dtype, device=grad.device)


def clip(grad: Tensor, clip_value: float | None, clip_coef: float | Tensor) -> Tensor:
    """Clamps, then multiplies by float32(clip_coef), one for all or one for each unit: rounded in that order."""
    if clip_value is not None:
        grad = grad.clamp(-clip_value, clip_value)
    return grad * torch.as_tensor(clip_coef, dtype=grad.dtype, device=grad.device)


def grad_stats(
    grads: Sequence[Tensor | None],
    loss_scale: float = 1.0,
    clip_value: float | None = None,
    norm_type: float = 2.0,
    dtype: torch.dtype = torch.float32,
) -> GradStats:
    """Reads every gradient once; None stands for a parameter that takes no part.

    Args:
        loss_scale: what the loss was multiplied by; 1 when the gradients are already unscaled.
        norm_type: 1, 2, inf or any p > 0; norms are of values clamped to ±clip_value.
        dtype: float32 as in the kernels; float64 lets tests hold this file tightly against torch.
    """
    inv_scale = inverse_scale(loss_scale)
    norms, abs_max, nonfinite = [], [], []
    for grad in grads:
        unscaled = (
            torch.zeros(1, dtype=torch.float32, device="cpu")
            if grad is None or grad.numel() == 0
            else unscale(grad, inv_scale, dtype)
        )
        nonfinite.append(int((~unscaled.isfinite()).sum()))
        abs_max.append(unscaled.abs().max().item())
        norms.append(abs_max[-1] if nonfinite[-1] else vector_norm(clip(unscaled, clip_value, 1.0), norm_type))
    if any(nonfinite):
        grad_norm = math.nan if any(map(math.isnan, abs_max)) else math.inf
    else:
        grad_norm = vector_norm(torch.tensor(norms, dtype=torch.float64, device="cpu"), norm_type)
    return GradStats(grad_norm, norms, abs_max, nonfinite)


def decide(
    stats: GradStats,
    loss_scale: float = 1.0,
    clip_value: float | None = None,
    max_norm: float | None = None,
    found_inf: bool = False,
) -> StepDecision:
    """Skips if anything is non-finite, here or (``found_inf``) when it was unscaled before; else clips as torch."""
    skip = stats.found_inf or found_inf
    clip_coef = 1.0
    if max_norm is not None and not skip:
        clip_coef = min(1.0, max_norm / (stats.grad_norm + 1e-6))
    return StepDecision(inverse_scale(loss_scale), clip_value, clip_coef, skip)


def update_loss_scale(scale: float, growth_tracker: int, found_inf: bool, policy: Any) -> tuple[float, int]:
    """Moves the scale as torch's GradScaler does, within [min_scale, max_scale]. Returns scale and tracker.

    ``policy`` is a `gradops.DynamicLossScale` or anything with its attributes; ``growth_tracker`` counts the steps
    without inf or NaN since the scale last moved.
    """
    if found_inf:
        return max(to_float32(scale * policy.backoff_factor), policy.min_scale), 0
    if growth_tracker + 1 < policy.growth_interval:
        return scale, growth_tracker + 1
    return min(to_float32(scale * policy.growth_factor), policy.max_scale), 0


class Reference:
    """The whole step on copies of the parameters, for a test to run beside a gradops optimizer.

    Args:
        param_groups: as in `torch.optim.Optimizer.param_groups`; hyper-parameters are read at each step.
        max_norm, norm_type, clip_value, max_relative_step, loss_scale, guard, master_weights, rounding, l1,
            clip_mode, ema: as in `gradops.wrap`, policies as objects.
        moments_dtype: in which moments are stored; None for ``dtype``.
        dtype: in which gradients are unscaled, and to which the update's results are rounded.
        rule: a module of `gradops.reference.rules`.
    """

    def __init__(
        self,
        param_groups: Iterable[dict[str, Any]],
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        clip_value: float | None = None,
        max_relative_step: Any = None,
        loss_scale: Any = None,
        guard: Any = None,
        master_weights: bool = False,
        moments_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        l1: float = 0.0,
        clip_mode: str = "norm",
        ema: Any = None,
        dtype: torch.dtype = torch.float32,
        rule: Any = adam,
    ) -> None:
        self.rule = rule
        self.groups = [{**g, "params": [p.detach().clone() for p in g["params"]]} for g in param_groups]
        self.params: list[Tensor] = [param for group in self.groups for param in group["params"]]
        self.states: list[ParamState | None] = [None] * len(self.params)
        self.max_norm, self.norm_type, self.clip_value = max_norm, norm_type, clip_value
        self.max_relative_step, self.policy, self.dtype = max_relative_step, loss_scale, dtype
        self.master_weights, self.moments_dtype, self.l1 = master_weights, moments_dtype or dtype, l1
        self.rounding, self.agc, self.ema = rounding, clip_mode == "agc", ema
        self.scale = 1.0 if loss_scale is None else float(getattr(loss_scale, "init_scale", loss_scale))
        self.growth_tracker = 0
        self.guard, self.guard_state = guard, GuardState()
        nothing = [math.nan] * len(self.params)
        self.stats = StepStats(grad_stats([None] * len(self.params)), [False] * len(self.params), nothing, nothing)

    def step(self, grads: Sequence[Tensor | None], *, unscaled: bool = False, found_inf: bool = False) -> StepStats:
        """One step; ``unscaled`` and ``found_inf`` say whether ``unscale_`` ran before it, and what it found."""
        if all(grad is None for grad in grads):
            return self.stats
        divisor = 1.0 if unscaled else self.scale
        seen = grad_stats(grads, divisor, self.clip_value, self.norm_type, self.dtype)
        decision = decide(seen, divisor, self.clip_value, None if self.agc else self.max_norm, found_inf)
        found_nonfinite, lr_factor = decision.skip, self.guard_state.lr_factor
        guarded = self._guard(decision, seen.grad_norm)
        before = [updated.clone() for updated in self.updated]
        capped = [False] * len(grads) if decision.skip else self._update(grads, decision, lr_factor, seen.norms)
        rows = self.update_rows(before, self.updated, grads, decision.skip)
        taken, skipped = self.stats.steps_taken + (not decision.skip), self.stats.steps_skipped + decision.skip
        self.stats = StepStats(
            seen, capped, *rows, decision.clip_coef, found_nonfinite, self.scale, taken, skipped, guarded, lr_factor
        )
        if hasattr(self.policy, "growth_factor"):
            moved = update_loss_scale(self.scale, self.growth_tracker, found_nonfinite, self.policy)
            self.scale, self.growth_tracker = moved
        return self.stats

    def _guard(self, decision: StepDecision, grad_norm: float) -> bool:
        """Makes the decision that of a guarded step if the norm is a spike, and moves the guard's state."""
        if self.guard is None or decision.skip:
            return False
        spike = is_spike(grad_norm, self.guard_state, self.guard)
        if spike and self.guard.action == "skip":
            decision.skip, decision.clip_coef = True, 1.0
        elif spike:
            decision.clip_coef = min(decision.clip_coef, self.guard_state.usual_norm / grad_norm)
        self.guard_state = next_guard_state(grad_norm, spike, self.guard_state, self.guard)
        return spike

    @property
    def updated(self) -> list[Tensor]:
        """The parameters, or their masters where they have any."""
        masters = [None if state is None else state.master for state in self.states]
        return [param if master is None else master for param, master in zip(self.params, masters, strict=True)]

    def update_rows(
        self, before: Sequence[Tensor], after: Sequence[Tensor], grads: Sequence[Tensor | None], skip: bool
    ) -> tuple[list[float], list[float]]:
        """`update_ratio` and `param_rms` of every parameter: 0 without a gradient; skipped, NaN and as they were."""
        if skip:
            return [0.0 if grad is None else math.nan for grad in grads], self.stats.param_rms
        rows = [
            (0.0, 0.0) if grad is None else update_stats(old, new)
            for old, new, grad in zip(before, after, grads, strict=True)
        ]
        return [ratio for ratio, _ in rows], [rms for _, rms in rows]

    def new_state(self, param: Tensor, group: dict[str, Any]) -> ParamState:
        """The state before the first update."""
        state = ParamState({name: torch.zeros_like(param, dtype=self.moments_dtype) for name in self.rule.MOMENTS})
        for name, moment in state.moments.items() if hasattr(self.rule, "start") else ():
            moment.fill_(self.rule.start(name, group))
        for name, start in getattr(self.rule, "SCALARS", {}).items():
            state.moments[name] = torch.tensor(start, dtype=torch.float32, device=param.device)
        if param.dtype in (torch.bfloat16, torch.float16):
            state.master = param.to(self.dtype) if self.master_weights else None
            state.compensation = torch.zeros_like(param) if self.rounding == "kahan" else None
        if self.ema is not None:
            state.ema = (param if state.master is None else state.master).to(self.dtype, copy=True)
        return state

    def _update(
        self, grads: Sequence[Tensor | None], decision: StepDecision, lr_factor: float, norms: Sequence[float]
    ) -> list[bool]:
        capped, groups = [], [group for group in self.groups for _ in group["params"]]
        smallest = decision.clip_coef
        for row, (param, grad, group) in enumerate(zip(self.params, grads, groups, strict=True)):
            state = self.states[row] or self.new_state(param, group)
            updated = param if state.master is None else state.master
            group_lr = float(group["lr"]) * lr_factor
            step, norm, options = state.step + 1, norms[row] * decision.clip_coef, {"l1": self.l1, **group}
            factor = grad_factor(self.rule, updated, norm, options, group_lr)
            per_rate = update_rms(self.rule, updated, norm, options, step, factor)
            lr = relative_lr(updated, group_lr, self.max_relative_step, step, per_rate)
            capped.append(grad is not None and lr < group_lr)
            if grad is not None:
                self.states[row] = state
                element = clip(unscale(grad, decision.inv_scale, self.dtype), decision.clip_value, decision.clip_coef)
                if self.agc and self.max_norm is not None and group.get("agc", True):
                    coefs = agc_coefs(updated, element, self.max_norm)
                    element = clip(element, None, coefs)
                    smallest = min(smallest, coefs.min().item())
                update_param(self.rule, param, element, state, options, lr, self.dtype, factor)
                average(state, updated, self.ema)
        decision.clip_coef = smallest
        return capped
