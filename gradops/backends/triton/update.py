"""Updates one chunk in Triton: in vectors where it is full and lies so, else element by element."""

import triton
import triton.language as tl

from gradops.backends.triton.math import SMALLEST_SCALE, add_squares, float_of, merge_squares
from gradops.backends.triton.measure import add_tile, chunk_stats, measure_tiles
from gradops.backends.triton.rows import (
    CHUNK,
    CLIP_COEF,
    IN_VECTORS,
    INV_SCALE,
    NUMEL,
    PARAM,
    SMALL_TILE,
    SMALL_TILE_LEVELS,
    SMALL_TILES,
    TILE,
    TILE_LEVELS,
    addresses_of,
    updated_dtype,
)
from gradops.backends.triton.update_tile import update_tile, values_of


@triton.jit
def update_in_vectors(
    row,
    layouts,
    begin,
    end,
    coefs,
    decision,
    clip_value,
    units,
    ema_weight,
    ELEMENT: tl.constexpr,
    COEFS: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    SQUARES: tl.constexpr,
    TRACKS: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
):
    """Updates a full chunk; with SQUARES returns the sum of the stored parameters' squares, and its scale; with
    TRACKS that of what they were moved by, and the bits of its scale.
    """
    addresses, values = addresses_of(row), values_of(coefs, COEFS)
    decided = (tl.load(decision + INV_SCALE), tl.load(decision + CLIP_COEF))
    sums = tl.zeros([TILE], tl.float32)
    abs_max_bits = tl.zeros([TILE], tl.int32)
    moved_sums = tl.zeros([TILE], tl.float32)
    scale_bits = tl.zeros([TILE], tl.int32) + SMALLEST_SCALE
    for at in range(begin, end, TILE):
        stored, moved = update_tile(
            addresses, row, layouts, at, decided, values, clip_value, units, ema_weight, ELEMENT, MOMENTS, KIND_,
            MASTERS, COMPENSATES, True, TILE,
        )  # fmt: skip
        if SQUARES:
            sums, abs_max_bits = add_tile(sums, abs_max_bits, stored, float("inf"), 2)
        if TRACKS:
            moved_sums, scale_bits = add_squares(moved_sums, scale_bits, moved)
    total, power_scale = 0.0, 1.0
    if SQUARES:
        tl.debug_barrier()  # a second look may read what another thread has stored
        total, power_scale, _, _ = chunk_stats(
            row, layouts, begin, end, 1.0, float("inf"), 2.0, sums, abs_max_bits, PARAM,
            updated_dtype(KIND_, MASTERS), 2, True,
        )  # fmt: skip
    moved_total, moved_scale_bits = 0.0, SMALLEST_SCALE
    if TRACKS:
        moved_total, moved_scale_bits = merge_squares(moved_sums, scale_bits, TILE_LEVELS)
    return total, power_scale, moved_total, moved_scale_bits


@triton.jit
def update_elements(
    row,
    layouts,
    begin,
    end,
    coefs,
    decision,
    clip_value,
    units,
    ema_weight,
    ELEMENT: tl.constexpr,
    COEFS: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    SQUARES: tl.constexpr,
    TRACKS: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
):
    """As `update_in_vectors`, for what is strided, off 16 bytes or a tail; it is read back to be measured.

    With TRACKS the small tiles are taken in the order of their lanes in whole ones, so that moves are added up as in
    vectors.
    """
    addresses, values = addresses_of(row), values_of(coefs, COEFS)
    decided = (tl.load(decision + INV_SCALE), tl.load(decision + CLIP_COEF))
    moved_total, moved_scale_bits = 0.0, SMALLEST_SCALE
    if TRACKS:
        part = tl.arange(0, SMALL_TILES)
        moved_totals = tl.zeros([SMALL_TILES], tl.float32)
        moved_scales = tl.zeros([SMALL_TILES], tl.int32) + SMALLEST_SCALE
        for index in range(SMALL_TILES):
            sums = tl.zeros([SMALL_TILE], tl.float32)
            scale_bits = tl.zeros([SMALL_TILE], tl.int32) + SMALLEST_SCALE
            for at in range(begin + index * SMALL_TILE, end, TILE):
                _, moved = update_tile(
                    addresses, row, layouts, at, decided, values, clip_value, units, ema_weight, ELEMENT, MOMENTS,
                    KIND_, MASTERS, COMPENSATES, False, SMALL_TILE,
                )  # fmt: skip
                sums, scale_bits = add_squares(sums, scale_bits, moved)
            part_total, part_scale_bits = merge_squares(sums, scale_bits, SMALL_TILE_LEVELS)
            moved_totals = tl.where(part == index, part_total, moved_totals)
            moved_scales = tl.where(part == index, part_scale_bits, moved_scales)
        moved_total, moved_scale_bits = merge_squares(moved_totals, moved_scales, TILE_LEVELS - SMALL_TILE_LEVELS)
    else:
        for at in range(begin, end, SMALL_TILE):
            update_tile(
                addresses, row, layouts, at, decided, values, clip_value, units, ema_weight, ELEMENT, MOMENTS, KIND_,
                MASTERS, COMPENSATES, False, SMALL_TILE,
            )  # fmt: skip
    total, power_scale = 0.0, 1.0
    if SQUARES:
        tl.debug_barrier()
        total, power_scale, _, _ = measure_tiles(
            row, layouts, begin, end, 1.0, float("inf"), 2.0, PARAM, updated_dtype(KIND_, MASTERS), 2, False
        )
    return total, power_scale, moved_total, moved_scale_bits


@triton.jit
def update_chunk(
    row,
    layouts,
    begin,
    coefs,
    decision,
    clip_value,
    units,
    ema_weight,
    param_sum,
    moved_sum,
    chunk_count,
    ELEMENT: tl.constexpr,
    COEFS: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    SQUARES: tl.constexpr,
    TRACKS: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
):
    """Updates a chunk and keeps the sum of its parameters' squares, for the next step to compare with, and that of its
    moves.
    """
    end = tl.minimum(begin + CHUNK, tl.load(row + NUMEL))
    if (tl.load(row + IN_VECTORS) != 0) & (end == begin + CHUNK):
        total, power_scale, moved_total, moved_scale_bits = update_in_vectors(
            row, layouts, begin, end, coefs, decision, clip_value, units, ema_weight, ELEMENT, COEFS, MOMENTS, KIND_,
            SQUARES, TRACKS, MASTERS, COMPENSATES,
        )  # fmt: skip
    else:
        total, power_scale, moved_total, moved_scale_bits = update_elements(
            row, layouts, begin, end, coefs, decision, clip_value, units, ema_weight, ELEMENT, COEFS, MOMENTS, KIND_,
            SQUARES, TRACKS, MASTERS, COMPENSATES,
        )  # fmt: skip
    if SQUARES:
        tl.store(param_sum, total)
        tl.store(param_sum + chunk_count, power_scale)
    if TRACKS:
        tl.store(moved_sum, moved_total)
        tl.store(moved_sum + chunk_count, float_of(moved_scale_bits))
