"""Measures one chunk of gradients or parameters in Triton: sum of powers, largest element, how many are not finite."""

import triton
import triton.language as tl

from gradops.backends.triton.math import (
    INF_BITS,
    abs_bits_of,
    clamp_grad,
    float_of,
    needs_scale,
    power_of,
    scale_of,
    tree_sum,
)
from gradops.backends.triton.rows import (
    CHUNK,
    IN_VECTORS,
    KIND,
    NUMEL,
    PARAM,
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
    power_scale,
    TENSOR: tl.constexpr,
    DTYPE: tl.constexpr,
    NORM: tl.constexpr,
    VECTORS: tl.constexpr,
):
    """The rare second look: sum of powers in a scale, and how many elements are not finite."""
    sums = tl.zeros([TILE], tl.float32)
    nonfinite = tl.zeros([TILE], tl.int32)
    for at in range(begin, end, TILE):
        x = read_tile(row, layouts, at, inv_scale, TENSOR, DTYPE, VECTORS)
        nonfinite += (abs_bits_of(x) >= INF_BITS).to(tl.int32)
        if NORM > 0:
            in_scale = tl.div_rn(tl.abs(clamp_grad(x, clip_value)), tl.zeros([TILE], tl.float32) + power_scale)
            sums += power_of(in_scale, p, NORM)
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
    """From what the lanes know: sum of powers and its scale, largest absolute value as bits, how many are not finite.

    The sum is `sum * power_scale^p`. The scale is 1 unless the plain sum left the range in which float32 is exact.
    """
    abs_max_bits = tl.max(lanes_abs_max_bits)
    total = tree_sum(sums, TILE_LEVELS)
    power_scale = 1.0
    nonfinite = 0
    in_scale = needs_scale(total, abs_max_bits, NORM)
    if in_scale | (abs_max_bits >= INF_BITS):
        largest = tl.minimum(float_of(abs_max_bits), clip_value)
        power_scale = tl.where(in_scale, scale_of(largest, NORM), 1.0)
        total, nonfinite = look_again(
            row, layouts, begin, end, inv_scale, clip_value, p, power_scale, TENSOR, DTYPE, NORM, VECTORS
        )
    return total, power_scale, abs_max_bits, nonfinite


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
        total, power_scale, abs_max_bits, nonfinite = measure_tiles(
            row, layouts, begin, end, inv_scale, clip_value, p, TENSOR, DTYPE, NORM, True
        )
    else:
        total, power_scale, abs_max_bits, nonfinite = measure_tiles(
            row, layouts, begin, end, inv_scale, clip_value, p, TENSOR, DTYPE, NORM, False
        )
    return total, power_scale, abs_max_bits, nonfinite


@triton.jit
def measure_param(row, layouts, begin, param_sum, chunk_count, DTYPES: tl.constexpr, MASTERS: tl.constexpr):
    """Measures a chunk of what is updated, for the relative step cap, as an update does when it writes it."""
    kind = tl.where(MASTERS, 0, tl.load(row + KIND) % 3)
    for dtype in tl.static_range(3):
        if DTYPES & (1 << dtype):
            if kind == dtype:
                total, power_scale, _, _ = measure_chunk(row, layouts, begin, 1.0, float("inf"), 2.0, PARAM, dtype, 2)
                tl.store(param_sum, total)
                tl.store(param_sum + chunk_count, power_scale)
