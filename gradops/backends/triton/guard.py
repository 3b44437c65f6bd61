"""csrc/math/spike_guard.h in Triton: once a step, in float64 from float32 state."""

import triton
import triton.language as tl

from gradops.backends.triton.rows import (
    DEVIATION,
    GUARD_WARMUP,
    GUARDED,
    HISTORY,
    LR_CUT,
    LR_FACTOR,
    LR_FACTOR_USED,
    LR_GROWTH,
    MIN_LR_FACTOR,
    NORMS_SEEN,
    RATIO,
    SKIPS,
    USUAL_NORM,
    Z_SCORE,
)


@triton.jit
def lr_factor_of(scalars, GUARDS: tl.constexpr):
    """What this step's learning rates are multiplied by; read before `guard_step` writes the next one."""
    lr_factor = 1.0
    if GUARDS:
        lr_factor = tl.load(scalars + LR_FACTOR)
    return lr_factor


@triton.jit
def guard_step(grad_norm, found_inf, clip_coef, settings, scalars, counters, GUARDS: tl.constexpr):
    """Whether the step is skipped and its clip coefficient; moves the guard's state, or begins it where none is."""
    skip = found_inf
    if GUARDS:
        usual = tl.load(scalars + USUAL_NORM).to(tl.float64)
        deviation = tl.load(scalars + DEVIATION).to(tl.float64)
        limit = tl.maximum(tl.load(settings + RATIO) * usual, usual + tl.load(settings + Z_SCORE) * deviation)
        warm = tl.load(counters + NORMS_SEEN) >= tl.load(settings + GUARD_WARMUP).to(tl.int64)
        guarded = (found_inf == 0) & warm & (grad_norm > limit)
        skips = tl.load(settings + SKIPS) != 0
        skip = found_inf | (guarded & skips)
        to_usual = tl.minimum((usual / tl.where(guarded, grad_norm, 1.0)).to(tl.float32), clip_coef)
        clip_coef = tl.where(guarded, tl.where(skips, 1.0, to_usual), clip_coef)
        move_history(grad_norm, limit, usual, deviation, found_inf, settings, scalars, counters)
        move_lr_factor(guarded, found_inf, settings, scalars)
    else:
        tl.store(scalars + GUARDED, 0.0)
        tl.store(scalars + LR_FACTOR_USED, 1.0)
        tl.store(scalars + LR_FACTOR, 1.0)
        tl.store(scalars + USUAL_NORM, 0.0)
        tl.store(scalars + DEVIATION, 0.0)
        tl.store(counters + NORMS_SEEN, 0)
    return skip, clip_coef


@triton.jit
def move_lr_factor(guarded, found_inf, settings, scalars):
    used = tl.load(scalars + LR_FACTOR)
    factor = used.to(tl.float64) * tl.where(guarded, tl.load(settings + LR_CUT), tl.load(settings + LR_GROWTH))
    factor = tl.minimum(tl.maximum(factor, tl.load(settings + MIN_LR_FACTOR)), 1.0)
    tl.store(scalars + GUARDED, tl.where(guarded, 1.0, 0.0))
    tl.store(scalars + LR_FACTOR_USED, used)
    tl.store(scalars + LR_FACTOR, tl.where(found_inf, used, factor.to(tl.float32)))


@triton.jit
def move_history(grad_norm, limit, usual, deviation, found_inf, settings, scalars, counters):
    """Norms that no positive float32 holds, and those of steps with an inf or NaN, leave it alone."""
    norm, seen = grad_norm.to(tl.float32), tl.load(counters + NORMS_SEEN) + 1
    if (found_inf == 0) & (norm > 0) & (norm < float("inf")):
        first = seen == 1
        rate = 1.0 / tl.minimum(seen.to(tl.float64), tl.load(settings + HISTORY))
        away = tl.abs(tl.minimum(grad_norm, limit) - usual)
        deviation = tl.where(first, 0.0, deviation + (away - deviation) * rate)
        moved = tl.where(norm > tl.load(scalars + USUAL_NORM), usual * (1.0 + rate), usual / (1.0 + rate))
        moved = tl.where(norm == tl.load(scalars + USUAL_NORM), usual, moved).to(tl.float32)
        tl.store(scalars + USUAL_NORM, tl.where(first, norm, moved))
        tl.store(scalars + DEVIATION, deviation.to(tl.float32))
        tl.store(counters + NORMS_SEEN, seen)
