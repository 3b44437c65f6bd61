"""The first kernel of a step in Triton: measures the gradients and decides.

A program measures one chunk. The last program of a row, known by a ticket, merges the row; the last row's program
merges the rows and decides. Who is last changes nothing: merging is in a fixed order. No program waits for another.
"""

import triton
import triton.language as tl

from gradops.backends.triton_decide import decide, plan_row
from gradops.backends.triton_math import (
    INF_BITS,
    MERGE_LEVELS,
    abs_bits_of,
    clamp_grad,
    float_of,
    merge_stats,
    norm_of,
    power_sum,
)
from gradops.backends.triton_rows import (
    CHUNK,
    CHUNK_LEVELS,
    CHUNKS,
    CLIP_VALUE,
    FIRST_CHUNK,
    GRAD,
    IN_VECTORS,
    KIND,
    NORM_TYPE,
    NUMEL,
    ROW_WORDS,
    RULE_WORDS,
    TAKES_PART,
    scattered,
    vector,
)


@triton.jit
def chunk_stats(x, clip_value, p, NORM: tl.constexpr):
    """Of unscaled gradients: sum and unit of their powers, largest absolute value as bits, how many are not finite."""
    bits = abs_bits_of(x)
    abs_max_bits = tl.max(bits)
    nonfinite = 0
    if abs_max_bits >= INF_BITS:
        nonfinite = tl.sum((bits >= INF_BITS).to(tl.int32))
    clamped = clamp_grad(x, clip_value)
    largest = tl.where(abs_max_bits < INF_BITS, tl.minimum(abs_max_bits, abs_bits_of(clip_value)), abs_max_bits)
    total, unit = power_sum(clamped, largest, p, NORM, CHUNK_LEVELS)
    return total, unit, abs_max_bits, nonfinite


@triton.jit
def measure_chunk(
    row, layouts, begin, inv_scale, clip_value, p, TENSOR: tl.constexpr, DTYPE: tl.constexpr, NORM: tl.constexpr
):
    """`chunk_stats` of a chunk in memory; gradients are read once more soon, parameters not."""
    left = tl.load(row + NUMEL) - begin
    if (tl.load(row + IN_VECTORS) != 0) & (left >= CHUNK):
        x = tl.load(vector(row, begin, TENSOR, DTYPE), eviction_policy="evict_last").to(tl.float32) * inv_scale
        total, unit, abs_max_bits, nonfinite = chunk_stats(x, clip_value, p, NORM)
    else:
        inside = tl.arange(0, CHUNK) < left
        pointers = scattered(row, layouts, begin, TENSOR, DTYPE)
        x = tl.load(pointers, mask=inside, other=0.0).to(tl.float32) * inv_scale
        total, unit, abs_max_bits, nonfinite = chunk_stats(tl.where(inside, x, 0.0), clip_value, p, NORM)
    return total, unit, abs_max_bits, nonfinite


@triton.jit
def grad_stats_kernel(
    rows,
    chunk_rows,
    layouts,
    groups,
    lr_pointers,
    settings,
    loss_scale,
    found_inf,
    chunk_sums,
    chunk_counts,
    param_sums,
    param_counts,
    row_sums,
    row_counts,
    row_rules,
    decision,
    tickets,
    scalars,
    counters,
    norms,
    abs_max,
    nonfinite_of,
    row_count,
    chunk_count,
    DTYPES: tl.constexpr,
    NORM: tl.constexpr,
    CAPS: tl.constexpr,
    SCALED: tl.constexpr,
    MOVES_LOSS_SCALE: tl.constexpr,
):
    """Measures the gradients; the last program decides. `DTYPES` has a bit for each dtype that gradients have."""
    chunk = tl.program_id(0)
    index = tl.load(chunk_rows + chunk)
    row = rows + index.to(tl.int64) * ROW_WORDS
    first = tl.load(row + FIRST_CHUNK)
    p, clip_value = tl.load(settings + NORM_TYPE), tl.load(settings + CLIP_VALUE).to(tl.float32)
    scale, inv_scale = 1.0, 1.0
    if loss_scale is not None:
        scale = tl.load(loss_scale).to(tl.float32)
        if SCALED:
            inv_scale = (1.0 / scale.to(tl.float64)).to(tl.float32)
    kind = tl.where(tl.load(row + TAKES_PART) != 0, tl.load(row + KIND) // 3 % 3, -1)
    total, unit, abs_max_bits, nonfinite = 0.0, 1.0, 0, 0
    for dtype in tl.static_range(3):
        if DTYPES & (1 << dtype):
            if kind == dtype:
                total, unit, abs_max_bits, nonfinite = measure_chunk(
                    row, layouts, (chunk - first) * CHUNK, inv_scale, clip_value, p, GRAD, dtype, NORM
                )
    tl.store(chunk_sums + chunk, total)
    tl.store(chunk_sums + chunk_count + chunk, unit)
    tl.store(chunk_counts + chunk, abs_max_bits)
    tl.store(chunk_counts + chunk_count + chunk, nonfinite)
    if tl.atomic_add(tickets + index, 1, sem="acq_rel") == tl.load(row + CHUNKS) - 1:
        tl.store(tickets + index, 0)
        total, unit, abs_max_bits, nonfinite = merge_stats(
            chunk_sums, chunk_counts, chunk_count, first, tl.load(row + CHUNKS), p, NORM, MERGE_LEVELS
        )
        tl.store(row_sums + index, total)
        tl.store(row_sums + row_count + index, unit)
        tl.store(row_counts + index, abs_max_bits)
        tl.store(row_counts + row_count + index, nonfinite)
        norm = norm_of(total, unit, abs_max_bits, nonfinite, clip_value, p, NORM)
        tl.store(norms + index, norm.to(tl.float32))
        tl.store(abs_max + index, float_of(abs_max_bits))
        tl.store(nonfinite_of + index, nonfinite)
        if kind >= 0:
            rule = row_rules + index.to(tl.int64) * RULE_WORDS
            plan_row(row, groups, lr_pointers, settings, param_sums, param_counts, chunk_count, rule, CAPS)
        if tl.atomic_add(tickets + row_count, 1, sem="acq_rel") == row_count - 1:
            tl.store(tickets + row_count, 0)
            decide(
                row_sums, row_counts, row_count, settings, scale, inv_scale, found_inf, decision, scalars, counters,
                NORM, MOVES_LOSS_SCALE,
            )  # fmt: skip
