"""The second kernel of a step in Triton: updates what the first one decided to."""

import triton
import triton.language as tl

from gradops.backends.triton_grad_stats import add_tile, chunk_stats, measure_tiles
from gradops.backends.triton_math import adam_update, clamp_grad
from gradops.backends.triton_rows import (
    BETA2,
    CAPPED,
    CHUNK,
    CLIP_COEF,
    CLIP_VALUE,
    DECAY,
    EPS,
    EXP_AVG,
    EXP_AVG_SQ,
    FIRST_CHUNK,
    GRAD,
    GRAD_SIGN,
    IN_VECTORS,
    INV_BIAS_CORRECTION2_SQRT,
    INV_SCALE,
    KIND,
    KINDS,
    L2,
    MAX_EXP_AVG_SQ,
    NUMEL,
    ONE_MINUS_BETA1,
    ONE_MINUS_BETA2,
    PARAM,
    ROUNDED,
    ROW_WORDS,
    RULE_WORDS,
    SKIP,
    SMALL_TILE,
    STEP,
    STEP_SIZE,
    TAKES_PART,
    TILE,
    addresses_of,
    element_of,
    has_amsgrad,
    is_rounded,
    moments_dtype,
    pointers_of,
    updated_dtype,
)


@triton.jit
def rule_of(rule):
    """A row's rule as `adam_update` takes it; loaded before a loop, as `addresses_of`."""
    return (
        tl.load(rule + GRAD_SIGN),
        tl.load(rule + ONE_MINUS_BETA1),
        tl.load(rule + BETA2),
        tl.load(rule + ONE_MINUS_BETA2),
        tl.load(rule + EPS),
        tl.load(rule + L2),
        tl.load(rule + DECAY),
        tl.load(rule + STEP_SIZE),
        tl.load(rule + INV_BIAS_CORRECTION2_SQRT),
    )


@triton.jit
def update_tile(
    addresses,
    row,
    layouts,
    at,
    decided,
    rule,
    clip_value,
    KIND_: tl.constexpr,
    MASTERS: tl.constexpr,
    VECTORS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Updates SIZE elements, in the order of the row; returns what was stored of the parameter or its master."""
    HINT: tl.constexpr = "evict_first" if VECTORS else ""  # a sector is used by several programs' elements otherwise
    MOMENT: tl.constexpr = element_of(moments_dtype(KIND_))
    param_at = pointers_of(addresses, row, layouts, at, PARAM, updated_dtype(KIND_, MASTERS), VECTORS, SIZE)
    exp_avg_at = pointers_of(addresses, row, layouts, at, EXP_AVG, moments_dtype(KIND_), VECTORS, SIZE)
    exp_avg_sq_at = pointers_of(addresses, row, layouts, at, EXP_AVG_SQ, moments_dtype(KIND_), VECTORS, SIZE)
    max_exp_avg_sq_at = pointers_of(addresses, row, layouts, at, MAX_EXP_AVG_SQ, moments_dtype(KIND_), VECTORS, SIZE)
    inside = None if VECTORS else at + tl.arange(0, SIZE) < tl.load(row + NUMEL)
    inv_scale, clip_coef = decided
    grad_at = pointers_of(addresses, row, layouts, at, GRAD, KIND_ // 3 % 3, VECTORS, SIZE)
    grad = tl.load(grad_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    param = tl.load(param_at, mask=inside, eviction_policy=HINT)
    exp_avg = tl.load(exp_avg_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    exp_avg_sq = tl.load(exp_avg_sq_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    max_exp_avg_sq = exp_avg_sq
    if has_amsgrad(KIND_):
        max_exp_avg_sq = tl.load(max_exp_avg_sq_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    grad = clamp_grad(grad * inv_scale, clip_value) * clip_coef
    updated, exp_avg, exp_avg_sq, max_exp_avg_sq = adam_update(
        param.to(tl.float32),
        exp_avg,
        exp_avg_sq,
        max_exp_avg_sq,
        grad,
        rule,
        has_amsgrad(KIND_),
    )
    stored = updated.to(param.dtype)
    tl.store(param_at, stored, mask=inside, eviction_policy=HINT)
    if is_rounded(KIND_, MASTERS):
        rounded_at = pointers_of(addresses, row, layouts, at, ROUNDED, KIND_ % 3, VECTORS, SIZE)
        tl.store(rounded_at, updated.to(element_of(KIND_ % 3)), mask=inside, eviction_policy=HINT)
    tl.store(exp_avg_at, exp_avg.to(MOMENT), mask=inside, eviction_policy=HINT)
    tl.store(exp_avg_sq_at, exp_avg_sq.to(MOMENT), mask=inside, eviction_policy=HINT)
    if has_amsgrad(KIND_):
        tl.store(max_exp_avg_sq_at, max_exp_avg_sq.to(MOMENT), mask=inside, eviction_policy=HINT)
    return stored.to(tl.float32)


@triton.jit
def update_in_vectors(
    row, layouts, begin, end, rule, decision, clip_value, KIND_: tl.constexpr, CAPS: tl.constexpr, MASTERS: tl.constexpr
):
    """Updates a full chunk; with CAPS returns the sum of the stored parameters' squares, and its unit."""
    addresses, values = addresses_of(row), rule_of(rule)
    decided = (tl.load(decision + INV_SCALE), tl.load(decision + CLIP_COEF))
    sums = tl.zeros([TILE], tl.float32)
    abs_max_bits = tl.zeros([TILE], tl.int32)
    for at in range(begin, end, TILE):
        stored = update_tile(addresses, row, layouts, at, decided, values, clip_value, KIND_, MASTERS, True, TILE)
        if CAPS:
            sums, abs_max_bits = add_tile(sums, abs_max_bits, stored, float("inf"), 2)
    total, unit = 0.0, 1.0
    if CAPS:
        tl.debug_barrier()  # a second look may read what another thread has stored
        total, unit, _, _ = chunk_stats(
            row,
            layouts,
            begin,
            end,
            1.0,
            float("inf"),
            2.0,
            sums,
            abs_max_bits,
            PARAM,
            updated_dtype(KIND_, MASTERS),
            2,
            True,
        )
    return total, unit


@triton.jit
def update_elements(
    row, layouts, begin, end, rule, decision, clip_value, KIND_: tl.constexpr, CAPS: tl.constexpr, MASTERS: tl.constexpr
):
    """As `update_in_vectors`, for what is strided, off 16 bytes or a tail; it is read back to be measured."""
    addresses, values = addresses_of(row), rule_of(rule)
    decided = (tl.load(decision + INV_SCALE), tl.load(decision + CLIP_COEF))
    for at in range(begin, end, SMALL_TILE):
        update_tile(addresses, row, layouts, at, decided, values, clip_value, KIND_, MASTERS, False, SMALL_TILE)
    total, unit = 0.0, 1.0
    if CAPS:
        tl.debug_barrier()
        total, unit, _, _ = measure_tiles(
            row, layouts, begin, end, 1.0, float("inf"), 2.0, PARAM, updated_dtype(KIND_, MASTERS), 2, False
        )
    return total, unit


@triton.jit
def update_chunk(
    row,
    layouts,
    begin,
    rule,
    decision,
    clip_value,
    param_sum,
    chunk_count,
    KIND_: tl.constexpr,
    CAPS: tl.constexpr,
    MASTERS: tl.constexpr,
):
    """Updates a chunk and, for the relative step cap of the next step, keeps the sum of its parameters' squares."""
    end = tl.minimum(begin + CHUNK, tl.load(row + NUMEL))
    if (tl.load(row + IN_VECTORS) != 0) & (end == begin + CHUNK):
        total, unit = update_in_vectors(row, layouts, begin, end, rule, decision, clip_value, KIND_, CAPS, MASTERS)
    else:
        total, unit = update_elements(row, layouts, begin, end, rule, decision, clip_value, KIND_, CAPS, MASTERS)
    if CAPS:
        tl.store(param_sum, total)
        tl.store(param_sum + chunk_count, unit)


@triton.jit(do_not_specialize=["chunk_count"])
def adam_step_kernel(
    rows,
    chunk_rows,
    layouts,
    settings,
    row_rules,
    decision,
    param_sums,
    capped,
    chunk_count,
    KINDS_HERE: tl.constexpr,
    CAPS: tl.constexpr,
    MASTERS: tl.constexpr,
):
    """Updates one chunk. `KINDS_HERE` has a bit for each kind that rows have; `MASTERS`: half precision has masters."""
    # Backwards: gradients that were read last are the likeliest to be in the cache still.
    chunk = chunk_count - 1 - tl.program_id(0)
    index = tl.load(chunk_rows + chunk)
    row = rows + index.to(tl.int64) * ROW_WORDS
    rule = row_rules + index.to(tl.int64) * RULE_WORDS
    first = tl.load(row + FIRST_CHUNK)
    moves = (tl.load(decision + SKIP) == 0) & (tl.load(row + TAKES_PART) != 0)
    if chunk == first:
        tl.store(capped + index, moves & (tl.load(rule + CAPPED) != 0))
        if moves:
            step = tl.load(row + STEP).to(tl.pointer_type(tl.float32))
            tl.store(step, tl.load(step) + 1.0)
    kind = tl.where(moves, tl.load(row + KIND), -1)
    clip_value = tl.load(settings + CLIP_VALUE).to(tl.float32)
    for each in tl.static_range(KINDS):
        if KINDS_HERE & (1 << each):
            if kind == each:
                begin = (chunk - first) * CHUNK
                param_sum = param_sums + chunk
                update_chunk(
                    row, layouts, begin, rule, decision, clip_value, param_sum, chunk_count, each, CAPS, MASTERS
                )
