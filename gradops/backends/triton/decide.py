"""From what the gradients are to what this step does with them, and how each row is updated: once a row or a step."""

import triton
import triton.language as tl

from gradops.backends.triton.ema import ema_weight_of
from gradops.backends.triton.guard import guard_step
from gradops.backends.triton.math import MERGE_LEVELS, clip_coef_of, merge_stats, norm_of
from gradops.backends.triton.rows import (
    BACKOFF_FACTOR,
    CAP,
    CAPPED,
    CHUNKS,
    CLIP_COEF,
    CLIP_VALUE,
    DECAY,
    DECOUPLED,
    EMA_WEIGHT,
    FIRST_CHUNK,
    FLOOR,
    GRAD_SIGN,
    GROUP,
    GROWTH_FACTOR,
    GROWTH_INTERVAL,
    INV_SCALE,
    L1,
    L1_OF,
    L2,
    LR,
    LR_IS_DOUBLE,
    MAX_NORM,
    MAX_SCALE,
    MAXIMIZE,
    MIN_SCALE,
    NORM_TYPE,
    NUMEL,
    OWN_COEFS,
    OWN_HYPER,
    SCALAR,
    SKIP,
    STEP,
    WARMUP_STEPS,
    WEIGHT_DECAY,
)


@triton.jit
def current_lr(group, lr_pointer):
    """The group's lr in float64, from a device scalar where it is a tensor."""
    lr = tl.load(group + LR)
    if lr_pointer != 0:
        if tl.load(group + LR_IS_DOUBLE) != 0:
            lr = tl.load(lr_pointer.to(tl.pointer_type(tl.float64)))
        else:
            lr = tl.load(lr_pointer.to(tl.pointer_type(tl.float32))).to(tl.float64)
    return lr


@triton.jit
def rms_of(row, param_sums, param_counts, chunk_count):
    """Of what a row updates, in float64."""
    first, chunks = tl.load(row + FIRST_CHUNK), tl.load(row + CHUNKS)
    total, power_scale, _, _ = merge_stats(param_sums, param_counts, chunk_count, first, chunks, 2.0, 2, MERGE_LEVELS)
    return power_scale * tl.sqrt(total / tl.maximum(tl.load(row + NUMEL), 1).to(tl.float64))


@triton.jit
def relative_limit(rms, step, settings):
    """How far update number `step` may move a row of this RMS."""
    warmup = tl.load(settings + WARMUP_STEPS)
    warm = tl.where(step < warmup, step / tl.maximum(warmup, 1.0), 1.0)
    return tl.load(settings + CAP) * warm * tl.maximum(rms, tl.load(settings + FLOOR))


@triton.jit
def plan_row(
    row,
    groups,
    lr_pointers,
    settings,
    lr_factor,
    param_sums,
    param_counts,
    chunk_count,
    grad_norm,
    whole_norm,
    whole_root,
    coefs,
    COEFFICIENTS: tl.constexpr,
    NEXT_SCALAR: tl.constexpr,
    ADAPTS: tl.constexpr,
    GRAD_FACTOR: tl.constexpr,
    HYPER: tl.constexpr,
    CAPS: tl.constexpr,
    AVERAGES: tl.constexpr,
):
    """How a row is updated unless the step is skipped: derived in float64, then rounded.

    `COEFFICIENTS`, `NEXT_SCALAR`, `ADAPTS` and `GRAD_FACTOR` are the rule's, the last three None where it has none;
    `HYPER` is how many hyper-parameters of its own it has. `grad_norm` is the L2 norm of the clipped gradient, for a
    rule that scales gradients by norms and for CAPS of one whose updates grow with it, and else None. `whole_norm` and
    `whole_root` are the L2 norm of what is updated and the root of its number of elements, where the row has only a
    part of them, and else None.
    """
    group = groups + tl.load(row + GROUP) * (OWN_HYPER + HYPER)
    step = tl.load(tl.load(row + STEP).to(tl.pointer_type(tl.float32))).to(tl.float64) + 1.0
    lr = current_lr(group, tl.load(lr_pointers + tl.load(row + GROUP))) * lr_factor
    decay, decoupled = tl.load(group + WEIGHT_DECAY), tl.load(group + DECOUPLED) != 0
    root = whole_root
    if whole_root is None:
        root = tl.sqrt(tl.maximum(tl.load(row + NUMEL), 1).to(tl.float64))
    capped, rms, factor = 0.0, 0.0, 1.0
    if CAPS or GRAD_FACTOR is not None:
        rms = rms_of(row, param_sums, param_counts, chunk_count) if whole_norm is None else whole_norm / whole_root
    if GRAD_FACTOR is not None:
        with_l1 = grad_norm + tl.load(group + L1_OF) * root
        factor = GRAD_FACTOR(group + OWN_HYPER, decay, lr, rms * root, with_l1)
    if CAPS:
        limit = relative_limit(rms, step, settings)
        if grad_norm is not None:
            per_rate = grad_norm / root + tl.where(decoupled, 0.0, decay) * rms + tl.load(group + L1_OF)
            per_rate *= factor
            if ADAPTS is not None:
                per_rate = tl.where(ADAPTS(group + OWN_HYPER, step), 1.0, per_rate)
            limit = tl.where(per_rate > 0, limit / tl.where(per_rate > 0, per_rate, 1.0), float("inf"))
        capped = tl.where(limit < lr, 1.0, 0.0)
        lr = tl.minimum(limit, lr)
    tl.store(coefs + GRAD_SIGN, tl.where(tl.load(group + MAXIMIZE) != 0, -1.0, 1.0))
    tl.store(coefs + L1, tl.load(group + L1_OF).to(tl.float32))
    tl.store(coefs + L2, tl.where(decoupled, 0.0, decay).to(tl.float32))
    tl.store(coefs + DECAY, tl.where(decoupled, lr * decay, 0.0).to(tl.float32))
    tl.store(coefs + CAPPED, capped)
    if AVERAGES:
        tl.store(coefs + EMA_WEIGHT, ema_weight_of(settings, step).to(tl.float32))
    if NEXT_SCALAR is not None:
        scalar = tl.load(tl.load(row + SCALAR).to(tl.pointer_type(tl.float32))).to(tl.float64)
        own = COEFFICIENTS(group + OWN_HYPER, lr, step, scalar)
    elif GRAD_FACTOR is not None:
        own = COEFFICIENTS(group + OWN_HYPER, lr, step, factor)
    else:
        own = COEFFICIENTS(group + OWN_HYPER, lr, step)
    for place in tl.static_range(len(own)):
        tl.store(coefs + OWN_COEFS + place, own[place].to(tl.float32))


@triton.jit
def move_loss_scale(scalars, counters, settings, skip):
    """torch.amp.GradScaler's policy, kept inside [min_scale, max_scale]."""
    scale, tracker = tl.load(scalars + 4).to(tl.float64), tl.load(counters + 2) + 1
    grows = tracker >= tl.load(settings + GROWTH_INTERVAL).to(tl.int64)
    smaller = tl.maximum(scale * tl.load(settings + BACKOFF_FACTOR), tl.load(settings + MIN_SCALE))
    larger = tl.minimum(scale * tl.load(settings + GROWTH_FACTOR), tl.load(settings + MAX_SCALE))
    tl.store(scalars + 4, tl.where(skip, smaller, tl.where(grows, larger, scale)).to(tl.float32))
    tl.store(counters + 2, tl.where(skip | grows, 0, tracker))


@triton.jit
def decide(
    row_sums,
    row_counts,
    row_count,
    settings,
    scale,
    inv_scale,
    found_inf,
    decision,
    scalars,
    counters,
    NORM: tl.constexpr,
    MOVES_LOSS_SCALE: tl.constexpr,
    GUARDS: tl.constexpr,
):
    """Merges all rows and writes what the step does and the statistics of the whole of it."""
    p, clip_value = tl.load(settings + NORM_TYPE), tl.load(settings + CLIP_VALUE).to(tl.float32)
    total, power_scale, abs_max_bits, nonfinite = merge_stats(
        row_sums, row_counts, row_count, 0, row_count, p, NORM, MERGE_LEVELS
    )
    grad_norm = norm_of(total, power_scale, abs_max_bits, nonfinite, clip_value, p, NORM)
    found_nonfinite = nonfinite != 0
    if found_inf is not None:
        found_nonfinite = found_nonfinite | (tl.load(found_inf) != 0)
    clip_coef = tl.where(found_nonfinite, 1.0, clip_coef_of(grad_norm, tl.load(settings + MAX_NORM)))
    skip, clip_coef = guard_step(grad_norm, found_nonfinite, clip_coef, settings, scalars, counters, GUARDS)
    skipped = tl.where(skip, 1, 0)
    tl.store(decision + INV_SCALE, inv_scale)
    tl.store(decision + CLIP_COEF, clip_coef)
    tl.store(decision + SKIP, skipped.to(tl.float32))
    tl.store(scalars + 0, grad_norm.to(tl.float32))
    tl.store(scalars + 1, clip_coef)
    tl.store(scalars + 2, tl.where(found_nonfinite, 1.0, 0.0))
    tl.store(scalars + 3, scale)
    tl.store(counters + skipped, tl.load(counters + skipped) + 1)
    if MOVES_LOSS_SCALE:
        move_loss_scale(scalars, counters, settings, found_nonfinite)
