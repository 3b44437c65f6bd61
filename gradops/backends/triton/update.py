"""Updates one chunk in Triton: in vectors where it is full and lies so, else element by element."""

import triton
import triton.language as tl

from gradops.backends.triton.math import SMALLEST_UNIT, add_squares, float_of, merge_squares
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
    """Updates a full chunk; with SQUARES returns the sum of the stored parameters' squares, and its unit; with
    TRACKS that of what they were moved by, and the bits of its unit.
    """
    addresses, values = addresses_of(row), values_of(coefs, COEFS)
    decided = (tl.load(decision + INV_SCALE), tl.load(decision + CLIP_COEF))
    sums = tl.zeros([TILE], tl.float32)
    abs_max_bits = tl.zeros([TILE], tl.int32)
    moved_sums = tl.zeros([TILE], tl.float32)
    unit_bits = tl.zeros([TILE], tl.int32) + SMALLEST_UNIT
    for at in range(begin, end, TILE):
        stored, moved = update_tile(
            addresses, row, layouts, at, decided, values, clip_value, units, ema_weight, ELEMENT, MOMENTS, KIND_,
            MASTERS, COMPENSATES, True, TILE,
        )  # fmt: skip
        if SQUARES:
            sums, abs_max_bits = add_tile(sums, abs_max_bits, stored, float("inf"), 2)
        if TRACKS:
            moved_sums, unit_bits = add_squares(moved_sums, unit_bits, moved)
    total, unit = 0.0, 1.0
    if SQUARES:
        tl.debug_barrier()  # a second look may read what another thread has stored
        total, unit, _, _ = chunk_stats(
            row, layouts, begin, end, 1.0, float("inf"), 2.0, sums, abs_max_bits, PARAM,
            updated_dtype(KIND_, MASTERS), 2, True,
        )  # fmt: skip
    moved_total, moved_unit_bits = 0.0, SMALLEST_UNIT
    if TRACKS:
        moved_total, moved_unit_bits = merge_squares(moved_sums, unit_bits, TILE_LEVELS)
    return total, unit, moved_total, moved_unit_bits


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
    moved_total, moved_unit_bits = 0.0, SMALLEST_UNIT
    if TRACKS:
        part = tl.arange(0, SMALL_TILES)
        moved_totals = tl.zeros([SMALL_TILES], tl.float32)
        moved_units = tl.zeros([SMALL_TILES], tl.int32) + SMALLEST_UNIT
        for index in range(SMALL_TILES):
            sums = tl.zeros([SMALL_TILE], tl.float32)
            unit_bits = tl.zeros([SMALL_TILE], tl.int32) + SMALLEST_UNIT
            for at in range(begin + index * SMALL_TILE, end, TILE):
                _, moved = update_tile(
                    addresses, row, layouts, at, decided, values, clip_value, units, ema_weight, ELEMENT, MOMENTS,
                    KIND_, MASTERS, COMPENSATES, False, SMALL_TILE,
                )  # fmt: skip
                sums, unit_bits = add_squares(sums, unit_bits, moved)
            part_total, part_unit_bits = merge_squares(sums, unit_bits, SMALL_TILE_LEVELS)
            moved_totals = tl.where(part == index, part_total, moved_totals)
            moved_units = tl.where(part == index, part_unit_bits, moved_units)
        moved_total, moved_unit_bits = merge_squares(moved_totals, moved_units, TILE_LEVELS - SMALL_TILE_LEVELS)
    else:
        for at in range(begin, end, SMALL_TILE):
            update_tile(
                addresses, row, layouts, at, decided, values, clip_value, units, ema_weight, ELEMENT, MOMENTS, KIND_,
                MASTERS, COMPENSATES, False, SMALL_TILE,
            )  # fmt: skip
    total, unit = 0.0, 1.0
    if SQUARES:
        tl.debug_barrier()
        total, unit, _, _ = measure_tiles(
            row, layouts, begin, end, 1.0, float("inf"), 2.0, PARAM, updated_dtype(KIND_, MASTERS), 2, False
        )
    return total, unit, moved_total, moved_unit_bits


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
        total, unit, moved_total, moved_unit_bits = update_in_vectors(
            row, layouts, begin, end, coefs, decision, clip_value, units, ema_weight, ELEMENT, COEFS, MOMENTS, KIND_,
            SQUARES, TRACKS, MASTERS, COMPENSATES,
        )  # fmt: skip
    else:
        total, unit, moved_total, moved_unit_bits = update_elements(
            row, layouts, begin, end, coefs, decision, clip_value, units, ema_weight, ELEMENT, COEFS, MOMENTS, KIND_,
            SQUARES, TRACKS, MASTERS, COMPENSATES,
        )  # fmt: skip
    if SQUARES:
        tl.store(param_sum, total)
        tl.store(param_sum + chunk_count, unit)
    if TRACKS:
        tl.store(moved_sum, moved_total)
        tl.store(moved_sum + chunk_count, float_of(moved_unit_bits))
