"""Adaptive gradient clipping in Triton (csrc/math/agc.h): the kernel that measures the units, and their factors.

It runs between the two kernels of a step, one program a unit, and reads gradients and parameters in a pass of its own:
40 bytes an element of float32 move in such a step instead of 32.
"""

import triton
import triton.language as tl

from gradops.backends.triton.math import (
    SMALLEST_SCALE,
    add_squares,
    clamp_grad,
    float_of,
    merge_squares,
)
from gradops.backends.triton.rows import (
    AGC_RATIO,
    CLIP_COEF,
    CLIP_VALUE,
    GRAD,
    INV_SCALE,
    KIND,
    NUMEL,
    PARAM,
    ROW_WORDS,
    SKIP,
    SMALL_TILE,
    SMALL_TILE_LEVELS,
    TAKES_PART,
    addresses_of,
    places_of,
)

# The words of a row's units: elements of a unit that follow each other, how many units there are (run i is of unit
# i % count), and the place of the first one's factor. A row that is not clipped by units is one unit with factor 1.
RUN, COUNT, FIRST = (tl.constexpr(i) for i in range(3))
UNIT_WORDS = tl.constexpr(3)
EPS = tl.constexpr(1e-3)


@triton.jit
def unit_norm(row, layouts, words, unit, scale, clip_value, TENSOR: tl.constexpr, DTYPE: tl.constexpr):
    """The L2 norm of a unit's values, times `scale` and clamped, in float64."""
    addresses, run, count = addresses_of(row), tl.load(words + RUN), tl.load(words + COUNT)
    length = tl.load(row + NUMEL) // count
    sums = tl.zeros([SMALL_TILE], tl.float32)
    scale_bits = tl.zeros([SMALL_TILE], tl.int32) + SMALLEST_SCALE
    for at in range(0, length, SMALL_TILE):
        index = at + tl.arange(0, SMALL_TILE).to(tl.int64)
        inside = index < length
        repeat = index // run
        place = (repeat * count + unit) * run + index - repeat * run
        x = tl.load(places_of(addresses, row, layouts, place, TENSOR, DTYPE), mask=inside, other=0.0)
        sums, scale_bits = add_squares(sums, scale_bits, clamp_grad(x.to(tl.float32) * scale, clip_value))
    total, measure_bits = merge_squares(sums, scale_bits, SMALL_TILE_LEVELS)
    return tl.sqrt(total.to(tl.float64)) * float_of(measure_bits).to(tl.float64)


@triton.jit
def unit_dtypes(row, MASTERS: tl.constexpr):
    """The codes of a row's gradient and of what is updated."""
    return tl.load(row + KIND) // 3 % 3, tl.where(MASTERS, 0, tl.load(row + KIND) % 3)


@triton.jit
def norms_of_unit(
    row,
    layouts,
    words,
    unit,
    dtypes,
    inv_scale,
    clip_value,
    DTYPES: tl.constexpr,
    PARAM_DTYPES: tl.constexpr,
):
    """The L2 norms of a unit's clamped gradient and of what is updated, in float64; `dtypes` are `unit_dtypes`."""
    grad_dtype, param_dtype = dtypes
    grad_norm, param_norm = inv_scale.to(tl.float64) * 0, inv_scale.to(tl.float64) * 0
    for dtype in tl.static_range(3):
        if DTYPES & (1 << dtype):
            if grad_dtype == dtype:
                grad_norm = unit_norm(row, layouts, words, unit, inv_scale, clip_value, GRAD, dtype)
        if PARAM_DTYPES & (1 << dtype):
            if param_dtype == dtype:
                param_norm = unit_norm(row, layouts, words, unit, 1.0, float("inf"), PARAM, dtype)
    return grad_norm, param_norm


@triton.jit
def agc_coef(param_norm, grad_norm, ratio):
    """What a unit's gradient is multiplied by; a NaN fails the comparisons."""
    limit = ratio * tl.where(param_norm < EPS, EPS, param_norm)
    return tl.where(grad_norm > limit, limit / grad_norm, 1.0).to(tl.float32)


@triton.jit
def unit_coefs_kernel(
    rows,
    units,
    rows_of_units,
    layouts,
    settings,
    decision,
    scalars,
    unit_coefs,
    unit_norms,
    DTYPES: tl.constexpr,
    PARAM_DTYPES: tl.constexpr,
    MASTERS: tl.constexpr,
):
    """The factor of one unit. The smallest of all is written in place of the decision's, which precedes it.

    `DTYPES` and `PARAM_DTYPES` have a bit for each dtype of gradients and of what is updated. `unit_norms`, where rows
    may be parts, has two norms a row as the exchange has merged them; negative ones are measured here.
    """
    at = tl.program_id(0)
    index = tl.load(rows_of_units + at).to(tl.int64)
    row, words = rows + index * ROW_WORDS, units + index * UNIT_WORDS
    if (tl.load(decision + SKIP) == 0) & (tl.load(row + TAKES_PART) != 0):
        unit = at + 1 - tl.load(words + FIRST)
        dtypes = unit_dtypes(row, MASTERS)
        clip_value = tl.load(settings + CLIP_VALUE).to(tl.float32)
        inv_scale, clip_coef = tl.load(decision + INV_SCALE), tl.load(decision + CLIP_COEF)
        grad_norm, param_norm = norms_of_unit(
            row, layouts, words, unit, dtypes, inv_scale, clip_value, DTYPES, PARAM_DTYPES
        )
        if unit_norms is not None:
            whole = unit_norms + 2 * index
            if tl.load(whole) >= 0:
                grad_norm, param_norm = tl.load(whole), tl.load(whole + 1)
        coef = agc_coef(param_norm, grad_norm * clip_coef, tl.load(settings + AGC_RATIO))
        tl.store(unit_coefs + at + 1, coef)
        if coef < 1.0:
            bits = coef.to(tl.int32, bitcast=True)
            tl.atomic_min((scalars + 1).to(tl.pointer_type(tl.int32), bitcast=True), bits)


@triton.jit
def units_of(words, coefs):
    """A row's units as `coefs_of` takes them; loaded before a loop, as `addresses_of`."""
    return tl.load(words + RUN), tl.load(words + COUNT), coefs + tl.load(words + FIRST)


@triton.jit
def coefs_of(units, at, inside, SIZE: tl.constexpr):
    """The factors of SIZE elements, in the order of the row. One division of 64 bits serves all of them."""
    run, count, coefs = units
    first = at // run
    left = first * run + run - at  # elements of the first run
    head, each = tl.minimum(left, SIZE).to(tl.int32), tl.minimum(run, SIZE).to(tl.int32)
    element = tl.arange(0, SIZE)
    local = tl.where(element < head, 0, 1 + (element - head) // each)
    unit = first % count + local % tl.minimum(count, 2 * SIZE).to(tl.int32)
    unit = tl.where(unit >= count, unit - count, unit)
    return tl.load(coefs + unit) if inside is None else tl.load(coefs + unit, mask=inside, other=1.0)
