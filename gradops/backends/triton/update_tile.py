"""Updates one tile in Triton: what is stored of a parameter and its state, in one read and one write of each."""

import triton
import triton.language as tl

from gradops.backends.triton.agc import coefs_of
from gradops.backends.triton.ema import averaged
from gradops.backends.triton.math import clamp_grad, left_by_rounding, regularise
from gradops.backends.triton.rows import (
    COMPENSATION,
    DECAY,
    EMA,
    FLOAT32,
    GRAD,
    GRAD_SIGN,
    L1,
    L2,
    NUMEL,
    OWN_COEFS,
    PARAM,
    ROUNDED,
    element_of,
    is_compensated,
    is_rounded,
    loaded,
    moment_at,
    moment_count,
    moments_dtype,
    pointers_of,
    rule_variant,
    updated_dtype,
)


@triton.jit
def values_of(coefs, COEFS: tl.constexpr):
    """A row's coefficients: those that every rule has, and the rule's own."""
    shared = (tl.load(coefs + GRAD_SIGN), tl.load(coefs + L1), tl.load(coefs + L2), tl.load(coefs + DECAY))
    return shared, loaded(coefs + OWN_COEFS, COEFS)


@triton.jit
def update_tile(
    addresses,
    row,
    layouts,
    at,
    decided,
    values,
    clip_value,
    units,
    ema_weight,
    ELEMENT: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
    VECTORS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Updates SIZE elements, in the order of the row; returns what was stored of the parameter or its master, and what
    that added. Gradients are clipped by `units`, and what was stored is averaged by `ema_weight`, unless they are
    None.
    """
    HINT: tl.constexpr = "evict_first" if VECTORS else ""  # a sector is used by several programs' elements otherwise
    MOMENT: tl.constexpr = element_of(moments_dtype(KIND_))
    param_at = pointers_of(addresses, row, layouts, at, PARAM, updated_dtype(KIND_, MASTERS), VECTORS, SIZE)
    moments_at = ()
    for place in tl.static_range(moment_count(MOMENTS, KIND_)):
        moment_pointers = pointers_of(
            addresses, row, layouts, at, moment_at(MOMENTS, KIND_, place), moments_dtype(KIND_), VECTORS, SIZE
        )
        moments_at = moments_at + (moment_pointers,)
    inside = None if VECTORS else at + tl.arange(0, SIZE) < tl.load(row + NUMEL)
    inv_scale, clip_coef = decided
    grad_at = pointers_of(addresses, row, layouts, at, GRAD, KIND_ // 3 % 3, VECTORS, SIZE)
    grad = tl.load(grad_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    param = tl.load(param_at, mask=inside, eviction_policy=HINT)
    moments = ()
    for place in tl.static_range(moment_count(MOMENTS, KIND_)):
        moment = tl.load(moments_at[place], mask=inside, eviction_policy=HINT).to(tl.float32)
        moments = moments + (moment,)
    grad = clamp_grad(grad * inv_scale, clip_value) * clip_coef
    if units is not None:
        grad *= coefs_of(units, at, inside, SIZE)
    weight = param.to(tl.float32)
    if is_compensated(KIND_, COMPENSATES):
        compensation_at = pointers_of(addresses, row, layouts, at, COMPENSATION, KIND_ % 3, VECTORS, SIZE)
        weight += tl.load(compensation_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    shared, own = values
    grad_sign, l1, l2, decay = shared
    weight, grad = regularise(weight, grad, grad_sign, l1, l2, decay)
    updated, moments = ELEMENT(weight, grad, moments, own, rule_variant(KIND_))
    stored = updated.to(param.dtype)
    tl.store(param_at, stored, mask=inside, eviction_policy=HINT)
    if is_compensated(KIND_, COMPENSATES):
        left = left_by_rounding(updated, stored.to(tl.float32)).to(param.dtype)
        tl.store(compensation_at, left, mask=inside, eviction_policy=HINT)
    if is_rounded(KIND_, MASTERS):
        rounded_at = pointers_of(addresses, row, layouts, at, ROUNDED, KIND_ % 3, VECTORS, SIZE)
        tl.store(rounded_at, updated.to(element_of(KIND_ % 3)), mask=inside, eviction_policy=HINT)
    for place in tl.static_range(moment_count(MOMENTS, KIND_)):
        tl.store(moments_at[place], moments[place].to(MOMENT), mask=inside, eviction_policy=HINT)
    if ema_weight is not None:
        if ema_weight != 0:
            average_at = pointers_of(addresses, row, layouts, at, EMA, FLOAT32, VECTORS, SIZE)
            average = tl.load(average_at, mask=inside, eviction_policy=HINT)
            tl.store(
                average_at, averaged(average, stored.to(tl.float32), ema_weight), mask=inside, eviction_policy=HINT
            )
    moved = stored.to(tl.float32) - param.to(tl.float32)
    if not VECTORS:
        moved = tl.where(inside, moved, 0.0)
    return stored.to(tl.float32), moved
