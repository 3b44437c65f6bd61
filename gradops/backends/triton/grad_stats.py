"""The first kernel of a step in Triton: measures the gradients, and parameters where no update has, and decides.

A program measures one chunk. The last program of a row, known by a ticket, merges the row; the last row's program
merges the rows and decides. Who is last changes nothing: merging is in a fixed order. No program waits for another.
"""

import triton
import triton.language as tl

from gradops.backends.triton.decide import decide, plan_row
from gradops.backends.triton.guard import lr_factor_of
from gradops.backends.triton.math import (
    INF_BITS,
    MERGE_LEVELS,
    abs_bits_of,
    clamp_grad,
    float_of,
    merge_stats,
    needs_unit,
    norm_of,
    power_of,
    tree_sum,
    unit_of,
)
from gradops.backends.triton.rows import (
    CHUNK,
    CHUNKS,
    CLIP_VALUE,
    FIRST_CHUNK,
    GRAD,
    IN_VECTORS,
    KIND,
    NORM_TYPE,
    NUMEL,
    OWN_COEFS,
    PARAM,
    ROW_WORDS,
    TAKES_PART,
    TILE,
    TILE_LEVELS,
    addresses_of,
    pointers_of,
)


@triton.jit
def read_tile(row, layouts, at, inv_scale, TENSOR: tl.constexpr, DTYPE: tl.constexpr, VECTORS: tl.constexpr):
    """A tile, unscaled, and 0 behind the end of the row."""
    pointers = pointers_of(addresses_of(row), row, layouts, at, TENSOR, DTYPE, VECTORS)
    if VECTORS:  # gradients are read once more soon
        x = tl.load(pointers, eviction_policy="evict_last").to(tl.float32) * inv_scale
    else:
        inside = at + tl.arange(0, TILE) < tl.load(row + NUMEL)
        x = tl.where(inside, tl.load(pointers, mask=inside, other=0.0).to(tl.float32) * inv_scale, 0.0)
    return x


@triton.jit
def add_tile(sums, abs_max_bits, x, clip_value, NORM: tl.constexpr):
    """Adds to what each lane knows of its elements: their plain sum of powers and the largest."""
    abs_max_bits = tl.maximum(abs_max_bits, abs_bits_of(x))
    clamped = clamp_grad(x, clip_value)
    if NORM == 1:
        sums += tl.abs(clamped)
    if NORM == 2:
        sums += clamped * clamped
    return sums, abs_max_bits


@triton.jit
def look_again(
    row,
    layouts,
    begin,
    end,
    inv_scale,
    clip_value,
    p,
    unit,
    TENSOR: tl.constexpr,
    DTYPE: tl.constexpr,
    NORM: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """The rare second look: sum of powers in a unit, and how many elements are not finite."""
    sums = tl.zeros([TILE], tl.float32)
    nonfinite = tl.zeros([TILE], tl.int32)
    for at in range(begin, end, TILE):
        x = read_tile(row, layouts, at, inv_scale, TENSOR, DTYPE, VECTORS)
        nonfinite += (abs_bits_of(x) >= INF_BITS).to(tl.int32)
        if NORM > 0:
            in_unit = tl.div_rn(tl.abs(clamp_grad(x, clip_value)), tl.zeros([TILE], tl.float32) + unit)
            sums += power_of(in_unit, p, NORM)
    return tree_sum(sums, TILE_LEVELS), tl.sum(nonfinite)


@triton.jit
def chunk_stats(
    row,
    layouts,
    begin,
    end,
    inv_scale,
    clip_value,
    p,
    sums,
    lanes_abs_max_bits,
    TENSOR: tl.constexpr,
    DTYPE: tl.constexpr,
    NORM: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """From what the lanes know: sum of powers and its unit, largest absolute value as bits, how many are not finite.

    The sum is `sum * unit^p`. The unit is 1 unless the plain sum left the range in which float32 is exact.
    """
    abs_max_bits = tl.max(lanes_abs_max_bits)
    total = tree_sum(sums, TILE_LEVELS)
    unit = 1.0
    nonfinite = 0
    in_unit = needs_unit(total, abs_max_bits, NORM)
    if in_unit | (abs_max_bits >= INF_BITS):
        largest = tl.minimum(float_of(abs_max_bits), clip_value)
        unit = tl.where(in_unit, unit_of(largest, NORM), 1.0)
        total, nonfinite = look_again(
            row, layouts, begin, end, inv_scale, clip_value, p, unit, TENSOR, DTYPE, NORM, VECTORS
        )
    return total, unit, abs_max_bits, nonfinite


@triton.jit
def measure_tiles(
    row,
    layouts,
    begin,
    end,
    inv_scale,
    clip_value,
    p,
    TENSOR: tl.constexpr,
    DTYPE: tl.constexpr,
    NORM: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """`chunk_stats` of elements in memory."""
    sums = tl.zeros([TILE], tl.float32)
    abs_max_bits = tl.zeros([TILE], tl.int32)
    if VECTORS:  # unrolled, so that several loads are on their way at once
        for tile in tl.static_range(CHUNK // TILE):
            x = read_tile(row, layouts, begin + tile * TILE, inv_scale, TENSOR, DTYPE, VECTORS)
            sums, abs_max_bits = add_tile(sums, abs_max_bits, x, clip_value, NORM)
    else:
        for at in range(begin, end, TILE):
            x = read_tile(row, layouts, at, inv_scale, TENSOR, DTYPE, VECTORS)
            sums, abs_max_bits = add_tile(sums, abs_max_bits, x, clip_value, NORM)
    return chunk_stats(
        row, layouts, begin, end, inv_scale, clip_value, p, sums, abs_max_bits, TENSOR, DTYPE, NORM, VECTORS
    )


@triton.jit
def measure_chunk(
    row, layouts, begin, inv_scale, clip_value, p, TENSOR: tl.constexpr, DTYPE: tl.constexpr, NORM: tl.constexpr
):
    """`measure_tiles` of a chunk, in vectors where it is full and lies so."""
    end = tl.minimum(begin + CHUNK, tl.load(row + NUMEL))
    if (tl.load(row + IN_VECTORS) != 0) & (end == begin + CHUNK):
        total, unit, abs_max_bits, nonfinite = measure_tiles(
            row, layouts, begin, end, inv_scale, clip_value, p, TENSOR, DTYPE, NORM, True
        )
    else:
        total, unit, abs_max_bits, nonfinite = measure_tiles(
            row, layouts, begin, end, inv_scale, clip_value, p, TENSOR, DTYPE, NORM, False
        )
    return total, unit, abs_max_bits, nonfinite


@triton.jit
def measure_param(row, layouts, begin, param_sum, chunk_count, DTYPES: tl.constexpr, MASTERS: tl.constexpr):
    """Measures a chunk of what is updated, for the relative step cap, as an update does when it writes it."""
    kind = tl.where(MASTERS, 0, tl.load(row + KIND) % 3)
    for dtype in tl.static_range(3):
        if DTYPES & (1 << dtype):
            if kind == dtype:
                total, unit, _, _ = measure_chunk(row, layouts, begin, 1.0, float("inf"), 2.0, PARAM, dtype, 2)
                tl.store(param_sum, total)
                tl.store(param_sum + chunk_count, unit)


@triton.jit(do_not_specialize=["row_count", "chunk_count"])
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
    row_coefs,
    decision,
    tickets,
    scalars,
    counters,
    norms,
    abs_max,
    nonfinite_of,
    unmeasured,
    row_count,
    chunk_count,
    DTYPES: tl.constexpr,
    PARAM_DTYPES: tl.constexpr,
    NORM: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    COEFS: tl.constexpr,
    HYPER: tl.constexpr,
    PLANS: tl.constexpr,
    CAPS: tl.constexpr,
    MASTERS: tl.constexpr,
    SCALED: tl.constexpr,
    MOVES_LOSS_SCALE: tl.constexpr,
    GUARDS: tl.constexpr,
):
    """Measures the gradients; the last program decides. `DTYPES` has a bit for each dtype that gradients have.

    `unmeasured` has a flag for each row whose parameter is to be measured too; it is None where no row's is.
    `COEFFICIENTS` and `COEFS` are those of `gradops.backends.triton.rules`; a group has `HYPER` numbers of the rule's.
    `PLANS`: rows are planned here, since that does not need the decision.
    """
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
    if unmeasured is not None:
        if tl.load(unmeasured + index) != 0:
            measure_param(row, layouts, (chunk - first) * CHUNK, param_sums + chunk, chunk_count, PARAM_DTYPES, MASTERS)
    tl.store(chunk_sums + chunk, total)
    tl.store(chunk_sums + chunk_count + chunk, unit)
    tl.store(chunk_counts + chunk, abs_max_bits)
    tl.store(chunk_counts + chunk_count + chunk, nonfinite)
    if tl.atomic_add(tickets + index, 1, sem="acq_rel") == tl.load(row + CHUNKS) - 1:
        tl.store(tickets + index, 0)
        count = tl.load(row + CHUNKS)
        merged = merge_stats(chunk_sums, chunk_counts, chunk_count, first, count, p, NORM, MERGE_LEVELS)
        row_total, row_unit, row_abs_max_bits, row_nonfinite = merged
        tl.store(row_sums + index, row_total)
        tl.store(row_sums + row_count + index, row_unit)
        tl.store(row_counts + index, row_abs_max_bits)
        tl.store(row_counts + row_count + index, row_nonfinite)
        norm = norm_of(row_total, row_unit, row_abs_max_bits, row_nonfinite, clip_value, p, NORM)
        tl.store(norms + index, norm.to(tl.float32))
        tl.store(abs_max + index, float_of(row_abs_max_bits))
        tl.store(nonfinite_of + index, row_nonfinite)
        if PLANS:
            if kind >= 0:
                coefs = row_coefs + index.to(tl.int64) * (OWN_COEFS + COEFS)
                lr_factor = lr_factor_of(scalars, GUARDS)
                plan_row(
                    row, groups, lr_pointers, settings, lr_factor, param_sums, param_counts, chunk_count, None, coefs,
                    COEFFICIENTS, HYPER, CAPS,
                )  # fmt: skip
        if tl.atomic_add(tickets + row_count, 1, sem="acq_rel") == row_count - 1:
            tl.store(tickets + row_count, 0)
            decide(
                row_sums, row_counts, row_count, settings, scale, inv_scale, found_inf, decision, scalars, counters,
                NORM, MOVES_LOSS_SCALE, GUARDS,
            )  # fmt: skip
