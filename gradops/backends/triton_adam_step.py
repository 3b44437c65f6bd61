"""The second kernel of a step in Triton: updates what the first one decided to; and the rare one that measures
parameters for the relative step cap, where no update has done so.
"""

import triton
import triton.language as tl

from gradops.backends.triton_grad_stats import measure_chunk
from gradops.backends.triton_math import abs_bits_of, adam_update, clamp_grad, power_sum
from gradops.backends.triton_rows import (
    BETA2,
    CAPPED,
    CHUNK,
    CHUNK_LEVELS,
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
    ROW_WORDS,
    RULE_WORDS,
    SKIP,
    STEP,
    STEP_SIZE,
    TAKES_PART,
    scattered,
    vector,
)


@triton.jit
def update_elements(
    param, grad, exp_avg, exp_avg_sq, max_exp_avg_sq, inside, rule, decision, clip_value, KIND_: tl.constexpr
):
    """Updates what the pointers point to, where `inside`, or everywhere if that is None; returns what was stored."""
    m = tl.load(exp_avg, mask=inside, eviction_policy="evict_first")
    v = tl.load(exp_avg_sq, mask=inside, eviction_policy="evict_first")
    weight = tl.load(param, mask=inside, eviction_policy="evict_first")
    g = tl.load(grad, mask=inside, eviction_policy="evict_first").to(tl.float32)
    largest = v
    if KIND_ >= 9:
        largest = tl.load(max_exp_avg_sq, mask=inside, eviction_policy="evict_first")
    g = clamp_grad(g * tl.load(decision + INV_SCALE), clip_value) * tl.load(decision + CLIP_COEF)
    updated, m, v, largest = adam_update(
        weight.to(tl.float32),
        m,
        v,
        largest,
        g * tl.load(rule + GRAD_SIGN),
        tl.load(rule + ONE_MINUS_BETA1),
        tl.load(rule + BETA2),
        tl.load(rule + ONE_MINUS_BETA2),
        tl.load(rule + EPS),
        tl.load(rule + L2),
        tl.load(rule + DECAY),
        tl.load(rule + STEP_SIZE),
        tl.load(rule + INV_BIAS_CORRECTION2_SQRT),
        KIND_ >= 9,
    )
    stored = updated.to(weight.dtype)
    tl.store(param, stored, mask=inside, eviction_policy="evict_first")
    tl.store(exp_avg, m, mask=inside, eviction_policy="evict_first")
    tl.store(exp_avg_sq, v, mask=inside, eviction_policy="evict_first")
    if KIND_ >= 9:
        tl.store(max_exp_avg_sq, largest, mask=inside, eviction_policy="evict_first")
    return stored.to(tl.float32)


@triton.jit
def update_in_vectors(row, begin, rule, decision, clip_value, KIND_: tl.constexpr):
    """A full chunk in 128-bit accesses."""
    return update_elements(
        vector(row, begin, PARAM, KIND_ % 3),
        vector(row, begin, GRAD, KIND_ // 3 % 3),
        vector(row, begin, EXP_AVG, 0),
        vector(row, begin, EXP_AVG_SQ, 0),
        vector(row, begin, MAX_EXP_AVG_SQ, 0),
        None,
        rule,
        decision,
        clip_value,
        KIND_,
    )


@triton.jit
def update_scattered(row, layouts, begin, inside, rule, decision, clip_value, KIND_: tl.constexpr):
    """A tail, or tensors with strides of their own or off 16 bytes."""
    return update_elements(
        scattered(row, layouts, begin, PARAM, KIND_ % 3),
        scattered(row, layouts, begin, GRAD, KIND_ // 3 % 3),
        scattered(row, layouts, begin, EXP_AVG, 0),
        scattered(row, layouts, begin, EXP_AVG_SQ, 0),
        scattered(row, layouts, begin, MAX_EXP_AVG_SQ, 0),
        inside,
        rule,
        decision,
        clip_value,
        KIND_,
    )


@triton.jit
def keep_squares(x, param_sums, chunk, chunk_count):
    """The sum of squares of a chunk of parameters, for the relative step cap of the next step."""
    total, unit = power_sum(x, tl.max(abs_bits_of(x)), 2.0, 2, CHUNK_LEVELS)
    tl.store(param_sums + chunk, total)
    tl.store(param_sums + chunk_count + chunk, unit)


@triton.jit
def update_chunk(
    row,
    layouts,
    chunk,
    begin,
    rule,
    decision,
    clip_value,
    param_sums,
    chunk_count,
    KIND_: tl.constexpr,
    CAPS: tl.constexpr,
):
    left = tl.load(row + NUMEL) - begin
    if (tl.load(row + IN_VECTORS) != 0) & (left >= CHUNK):
        stored = update_in_vectors(row, begin, rule, decision, clip_value, KIND_)
        if CAPS:
            keep_squares(stored, param_sums, chunk, chunk_count)
    else:
        inside = tl.arange(0, CHUNK) < left
        stored = update_scattered(row, layouts, begin, inside, rule, decision, clip_value, KIND_)
        if CAPS:
            keep_squares(tl.where(inside, stored, 0.0), param_sums, chunk, chunk_count)


@triton.jit
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
):
    """Updates one chunk. `KINDS_HERE` has a bit for each kind that rows have."""
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
                update_chunk(
                    row, layouts, chunk, begin, rule, decision, clip_value, param_sums, chunk_count, each, CAPS
                )


@triton.jit
def param_squares_kernel(rows, chunk_rows, layouts, wanted, param_sums, chunk_count, DTYPES: tl.constexpr):
    """Measures the parameters of the rows that are `wanted`, as `adam_step_kernel` does while it updates them."""
    chunk = tl.program_id(0)
    index = tl.load(chunk_rows + chunk)
    row = rows + index.to(tl.int64) * ROW_WORDS
    kind = tl.where(tl.load(wanted + index) != 0, tl.load(row + KIND) % 3, -1)
    begin = (chunk - tl.load(row + FIRST_CHUNK)) * CHUNK
    for dtype in tl.static_range(3):
        if DTYPES & (1 << dtype):
            if kind == dtype:
                total, unit, _, _ = measure_chunk(row, layouts, begin, 1.0, float("inf"), 2.0, PARAM, dtype, 2)
                tl.store(param_sums + chunk, total)
                tl.store(param_sums + chunk_count + chunk, unit)
