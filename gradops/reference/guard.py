"""The specification of `gradops.SpikeGuard`: what a norm is compared with, and how the guard's state moves.

Numbers are float64 from stored float32 values, rounded once when stored, as in `gradops.reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class GuardState:
    """What a guard knows between steps.

    ``lr_factor`` multiplies the learning rates of the next step; ``usual_norm`` is 0 before the first norm.
    """

    lr_factor: float = 1.0
    usual_norm: float = 0.0
    deviation: float = 0.0
    norms_seen: int = 0


def to_float32(x: float) -> float:
    """Rounds to the nearest float32; out of range becomes inf, as in a kernel's cast."""
    return torch.tensor(x, dtype=torch.float64, device="cpu").float().item()


def spike_limit(state: GuardState, guard: Any) -> float:
    return max(guard.ratio * state.usual_norm, state.usual_norm + guard.z_score * state.deviation)


def is_spike(grad_norm: float, state: GuardState, guard: Any) -> bool:
    """Whether a finite norm is one; ``guard`` is a `gradops.SpikeGuard` or anything with its attributes."""
    return state.norms_seen >= guard.warmup_steps and grad_norm > spike_limit(state, guard)


def next_guard_state(grad_norm: float, guarded: bool, state: GuardState, guard: Any) -> GuardState:
    """The state after a step with a finite norm; norms that no positive float32 holds leave the history alone."""
    factor = state.lr_factor * (guard.lr_cut if guarded else guard.lr_cut ** (-1.0 / guard.recovery_steps))
    lr_factor = to_float32(min(1.0, max(guard.min_lr_factor, factor)))
    norm, usual, seen = to_float32(grad_norm), state.usual_norm, state.norms_seen + 1
    if not 0.0 < norm < math.inf:
        return GuardState(lr_factor, usual, state.deviation, state.norms_seen)
    if seen == 1:
        return GuardState(lr_factor, norm, 0.0, 1)
    rate = 1.0 / min(seen, guard.history)
    away = abs(min(grad_norm, spike_limit(state, guard)) - usual)
    deviation = to_float32(state.deviation + (away - state.deviation) * rate)
    if norm != usual:
        usual = to_float32(usual * (1.0 + rate) if norm > usual else usual / (1.0 + rate))
    return GuardState(lr_factor, usual, deviation, seen)
