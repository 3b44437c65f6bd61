"""The first kernel of a step in Triton: measures the gradients, and parameters where no update has, and decides.

A program measures one chunk. The last program of a row, known by a ticket, merges the row; the last row's program
merges the rows and decides. Who is last changes nothing: merging is in a fixed order. No program waits for another.
"""

import triton
import triton.language as tl

from gradops.backends.triton.decide import decide, plan_row
from gradops.backends.triton.guard import lr_factor_of
from gradops.backends.triton.math import MERGE_LEVELS, float_of, merge_stats, norm_of
from gradops.backends.triton.measure import measure_chunk, measure_param
from gradops.backends.triton.row_stats import row_norm
from gradops.backends.triton.rows import (
    CHUNK,
    CHUNKS,
    CLIP_VALUE,
    FIRST_CHUNK,
    GRAD,
    KIND,
    NORM_TYPE,
    OWN_COEFS,
    ROW_WORDS,
    TAKES_PART,
)


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
    param_norms,
    row_count,
    chunk_count,
    DTYPES: tl.constexpr,
    PARAM_DTYPES: tl.constexpr,
    NORM: tl.constexpr,
    COEFFICIENTS: tl.constexpr,
    NEXT_SCALAR: tl.constexpr,
    COEFS: tl.constexpr,
    HYPER: tl.constexpr,
    PLANS: tl.constexpr,
    DECIDES: tl.constexpr,
    CAPS: tl.constexpr,
    AVERAGES: tl.constexpr,
    MASTERS: tl.constexpr,
    SCALED: tl.constexpr,
    MOVES_LOSS_SCALE: tl.constexpr,
    GUARDS: tl.constexpr,
):
    """Measures the gradients; with DECIDES the last program decides. `DTYPES` has a bit for each dtype of gradients.

    `unmeasured` has a flag for each row whose parameter is to be measured too; it is None where no row's is.
    `param_norms`, where it is not None, takes each row's L2 norm of what is updated, in float64, for an exchange.
    `COEFFICIENTS`, `NEXT_SCALAR` (or None) and `COEFS` are those of `gradops.backends.triton.rules`; a group has
    `HYPER` numbers of the rule's.
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
    total, power_scale, abs_max_bits, nonfinite = 0.0, 1.0, 0, 0
    for dtype in tl.static_range(3):
        if DTYPES & (1 << dtype):
            if kind == dtype:
                total, power_scale, abs_max_bits, nonfinite = measure_chunk(
                    row, layouts, (chunk - first) * CHUNK, inv_scale, clip_value, p, GRAD, dtype, NORM
                )
    if unmeasured is not None:
        if tl.load(unmeasured + index) != 0:
            measure_param(row, layouts, (chunk - first) * CHUNK, param_sums + chunk, chunk_count, PARAM_DTYPES, MASTERS)
    tl.store(chunk_sums + chunk, total)
    tl.store(chunk_sums + chunk_count + chunk, power_scale)
    tl.store(chunk_counts + chunk, abs_max_bits)
    tl.store(chunk_counts + chunk_count + chunk, nonfinite)
    if tl.atomic_add(tickets + index, 1, sem="acq_rel") == tl.load(row + CHUNKS) - 1:
        tl.store(tickets + index, 0)
        count = tl.load(row + CHUNKS)
        merged = merge_stats(chunk_sums, chunk_counts, chunk_count, first, count, p, NORM, MERGE_LEVELS)
        row_total, row_scale, row_abs_max_bits, row_nonfinite = merged
        tl.store(row_sums + index, row_total)
        tl.store(row_sums + row_count + index, row_scale)
        tl.store(row_counts + index, row_abs_max_bits)
        tl.store(row_counts + row_count + index, row_nonfinite)
        norm = norm_of(row_total, row_scale, row_abs_max_bits, row_nonfinite, clip_value, p, NORM)
        tl.store(norms + index, norm.to(tl.float32))
        tl.store(abs_max + index, float_of(row_abs_max_bits))
        tl.store(nonfinite_of + index, row_nonfinite)
        if param_norms is not None:
            param_norm = row_norm(param_sums, param_counts, chunk_count, row)
            tl.store(param_norms + index, tl.where(kind >= 0, param_norm, 0.0))
        if PLANS:
            if kind >= 0:
                coefs = row_coefs + index.to(tl.int64) * (OWN_COEFS + COEFS)
                lr_factor = lr_factor_of(scalars, GUARDS)
                plan_row(
                    row, groups, lr_pointers, settings, lr_factor, param_sums, param_counts, chunk_count, None, None,
                    None, coefs, COEFFICIENTS, NEXT_SCALAR, None, None, HYPER, CAPS, AVERAGES,
                )  # fmt: skip
        if DECIDES:
            if tl.atomic_add(tickets + row_count, 1, sem="acq_rel") == row_count - 1:
                tl.store(tickets + row_count, 0)
                decide(
                    row_sums, row_counts, row_count, settings, scale, inv_scale, found_inf, decision, scalars,
                    counters, NORM, MOVES_LOSS_SCALE, GUARDS,
                )  # fmt: skip
