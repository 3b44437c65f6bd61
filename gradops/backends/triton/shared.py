"""The kernels that only a step has of which processes have parts of the rows: before and after the exchange."""

import triton
import triton.language as tl

from gradops.backends.triton.agc import UNIT_WORDS, norms_of_unit, unit_dtypes
from gradops.backends.triton.decide import decide
from gradops.backends.triton.rows import CLIP_VALUE, ROW_WORDS, SKIP, TAKES_PART


@triton.jit
def inverse_of(scale, SCALED: tl.constexpr):
    """What gradients are multiplied by that carry this loss scale."""
    return (1.0 / scale.to(tl.float64)).to(tl.float32) if SCALED else scale * 0 + 1.0


@triton.jit
def unit_norms_kernel(
    rows,
    units,
    layouts,
    settings,
    loss_scale,
    one_unit,
    unit_norms,
    DTYPES: tl.constexpr,
    PARAM_DTYPES: tl.constexpr,
    MASTERS: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Of one row that is one unit, as `one_unit` says, this process's part of it; 0 for others. See `agc`."""
    index = tl.program_id(0).to(tl.int64)
    row, norms = rows + index * ROW_WORDS, unit_norms + 2 * index
    if (tl.load(one_unit + index) != 0) & (tl.load(row + TAKES_PART) != 0):
        inv_scale = inverse_of(tl.load(loss_scale).to(tl.float32), SCALED)
        clip_value = tl.load(settings + CLIP_VALUE).to(tl.float32)
        words, dtypes = units + index * UNIT_WORDS, unit_dtypes(row, MASTERS)
        grad_norm, param_norm = norms_of_unit(
            row, layouts, words, 0, dtypes, inv_scale, clip_value, DTYPES, PARAM_DTYPES
        )
        tl.store(norms, grad_norm)
        tl.store(norms + 1, param_norm)
    else:
        tl.store(norms, 0.0)
        tl.store(norms + 1, 0.0)


@triton.jit(do_not_specialize=["row_count"])
def decide_kernel(
    row_sums,
    row_counts,
    settings,
    loss_scale,
    found_inf,
    somebody,
    decision,
    scalars,
    counters,
    row_count,
    NORM: tl.constexpr,
    SCALED: tl.constexpr,
    MOVES_LOSS_SCALE: tl.constexpr,
    GUARDS: tl.constexpr,
):
    """Decides by the whole rows' sums, in one program. Where `somebody` is 0 no row has a gradient: nothing happens."""
    if tl.load(somebody) != 0:
        scale = tl.load(loss_scale).to(tl.float32)
        decide(
            row_sums, row_counts, row_count, settings, scale, inverse_of(scale, SCALED), found_inf, decision, scalars,
            counters, NORM, MOVES_LOSS_SCALE, GUARDS,
        )  # fmt: skip
    else:
        tl.store(decision + SKIP, 1.0)
