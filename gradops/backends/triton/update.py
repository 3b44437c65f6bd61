"""Updates one chunk in Triton: in vectors where it is full and lies so, else element by element."""

import triton
import triton.language as tl

from gradops.backends.triton.agc import coefs_of
from gradops.backends.triton.grad_stats import add_tile, chunk_stats, measure_tiles
from gradops.backends.triton.math import (
    SMALLEST_UNIT,
    add_squares,
    clamp_grad,
    float_of,
    left_by_rounding,
    merge_squares,
    regularise,
)
from gradops.backends.triton.rows import (
    CHUNK,
    CLIP_COEF,
    COMPENSATION,
    DECAY,
    GRAD,
    GRAD_SIGN,
    IN_VECTORS,
    INV_SCALE,
    L1,
    L2,
    NUMEL,
    OWN_COEFS,
    PARAM,
    ROUNDED,
    SMALL_TILE,
    SMALL_TILE_LEVELS,
    SMALL_TILES,
    TILE,
    TILE_LEVELS,
    addresses_of,
    element_of,
    is_compensated,
    is_rounded,
    loaded,
    moment_at,
    moment_count,
    moments_dtype,
    pointers_of,
    rule_variant,
    updated_dtype,
)


@triton.jit
def values_of(coefs, COEFS: tl.constexpr):
    """A row's coefficients: those that every rule has, and the rule's own."""
    shared = (tl.load(coefs + GRAD_SIGN), tl.load(coefs + L1), tl.load(coefs + L2), tl.load(coefs + DECAY))
    return shared, loaded(coefs + OWN_COEFS, COEFS)


@triton.jit
def update_tile(
    addresses,
    row,
    layouts,
    at,
    decided,
    values,
    clip_value,
    units,
    ELEMENT: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
    VECTORS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Updates SIZE elements, in the order of the row; returns what was stored of the parameter or its master, and what
    that added. Gradients are clipped by `units`, unless those are None.
    """
    HINT: tl.constexpr = "evict_first" if VECTORS else ""  # a sector is used by several programs' elements otherwise
    MOMENT: tl.constexpr = element_of(moments_dtype(KIND_))
    param_at = pointers_of(addresses, row, layouts, at, PARAM, updated_dtype(KIND_, MASTERS), VECTORS, SIZE)
    moments_at = ()
    for place in tl.static_range(moment_count(MOMENTS, KIND_)):
        moment_pointers = pointers_of(
            addresses, row, layouts, at, moment_at(MOMENTS, KIND_, place), moments_dtype(KIND_), VECTORS, SIZE
        )
        moments_at = moments_at + (moment_pointers,)
    inside = None if VECTORS else at + tl.arange(0, SIZE) < tl.load(row + NUMEL)
    inv_scale, clip_coef = decided
    grad_at = pointers_of(addresses, row, layouts, at, GRAD, KIND_ // 3 % 3, VECTORS, SIZE)
    grad = tl.load(grad_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    param = tl.load(param_at, mask=inside, eviction_policy=HINT)
    moments = ()
    for place in tl.static_range(moment_count(MOMENTS, KIND_)):
        moment = tl.load(moments_at[place], mask=inside, eviction_policy=HINT).to(tl.float32)
        moments = moments + (moment,)
    grad = clamp_grad(grad * inv_scale, clip_value) * clip_coef
    if units is not None:
        grad *= coefs_of(units, at, inside, SIZE)
    weight = param.to(tl.float32)
    if is_compensated(KIND_, COMPENSATES):
        compensation_at = pointers_of(addresses, row, layouts, at, COMPENSATION, KIND_ % 3, VECTORS, SIZE)
        weight += tl.load(compensation_at, mask=inside, eviction_policy=HINT).to(tl.float32)
    shared, own = values
    grad_sign, l1, l2, decay = shared
    weight, grad = regularise(weight, grad, grad_sign, l1, l2, decay)
    updated, moments = ELEMENT(weight, grad, moments, own, rule_variant(KIND_))
    stored = updated.to(param.dtype)
    tl.store(param_at, stored, mask=inside, eviction_policy=HINT)
    if is_compensated(KIND_, COMPENSATES):
        left = left_by_rounding(updated, stored.to(tl.float32)).to(param.dtype)
        tl.store(compensation_at, left, mask=inside, eviction_policy=HINT)
    if is_rounded(KIND_, MASTERS):
        rounded_at = pointers_of(addresses, row, layouts, at, ROUNDED, KIND_ % 3, VECTORS, SIZE)
        tl.store(rounded_at, updated.to(element_of(KIND_ % 3)), mask=inside, eviction_policy=HINT)
    for place in tl.static_range(moment_count(MOMENTS, KIND_)):
        tl.store(moments_at[place], moments[place].to(MOMENT), mask=inside, eviction_policy=HINT)
    moved = stored.to(tl.float32) - param.to(tl.float32)
    if not VECTORS:
        moved = tl.where(inside, moved, 0.0)
    return stored.to(tl.float32), moved


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
    ELEMENT: tl.constexpr,
    COEFS: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    CAPS: tl.constexpr,
    TRACKS: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
):
    """Updates a full chunk; with CAPS or TRACKS returns the sum of the stored parameters' squares, and its unit; with
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
            addresses, row, layouts, at, decided, values, clip_value, units, ELEMENT, MOMENTS, KIND_, MASTERS,
            COMPENSATES, True, TILE,
        )  # fmt: skip
        if CAPS or TRACKS:
            sums, abs_max_bits = add_tile(sums, abs_max_bits, stored, float("inf"), 2)
        if TRACKS:
            moved_sums, unit_bits = add_squares(moved_sums, unit_bits, moved)
    total, unit = 0.0, 1.0
    if CAPS or TRACKS:
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
    ELEMENT: tl.constexpr,
    COEFS: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    CAPS: tl.constexpr,
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
                    addresses, row, layouts, at, decided, values, clip_value, units, ELEMENT, MOMENTS, KIND_, MASTERS,
                    COMPENSATES, False, SMALL_TILE,
                )  # fmt: skip
                sums, unit_bits = add_squares(sums, unit_bits, moved)
            part_total, part_unit_bits = merge_squares(sums, unit_bits, SMALL_TILE_LEVELS)
            moved_totals = tl.where(part == index, part_total, moved_totals)
            moved_units = tl.where(part == index, part_unit_bits, moved_units)
        moved_total, moved_unit_bits = merge_squares(moved_totals, moved_units, TILE_LEVELS - SMALL_TILE_LEVELS)
    else:
        for at in range(begin, end, SMALL_TILE):
            update_tile(
                addresses, row, layouts, at, decided, values, clip_value, units, ELEMENT, MOMENTS, KIND_, MASTERS,
                COMPENSATES, False, SMALL_TILE,
            )  # fmt: skip
    total, unit = 0.0, 1.0
    if CAPS or TRACKS:
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
    param_sum,
    moved_sum,
    chunk_count,
    ELEMENT: tl.constexpr,
    COEFS: tl.constexpr,
    MOMENTS: tl.constexpr,
    KIND_: tl.constexpr,
    CAPS: tl.constexpr,
    TRACKS: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
):
    """Updates a chunk and keeps the sum of its parameters' squares, for the relative step cap of the next step, and
    that of its moves.
    """
    end = tl.minimum(begin + CHUNK, tl.load(row + NUMEL))
    if (tl.load(row + IN_VECTORS) != 0) & (end == begin + CHUNK):
        total, unit, moved_total, moved_unit_bits = update_in_vectors(
            row, layouts, begin, end, coefs, decision, clip_value, units, ELEMENT, COEFS, MOMENTS, KIND_, CAPS, TRACKS,
            MASTERS, COMPENSATES,
        )  # fmt: skip
    else:
        total, unit, moved_total, moved_unit_bits = update_elements(
            row, layouts, begin, end, coefs, decision, clip_value, units, ELEMENT, COEFS, MOMENTS, KIND_, CAPS, TRACKS,
            MASTERS, COMPENSATES,
        )  # fmt: skip
    if CAPS or TRACKS:
        tl.store(param_sum, total)
        tl.store(param_sum + chunk_count, unit)
    if TRACKS:
        tl.store(moved_sum, moved_total)
        tl.store(moved_sum + chunk_count, float_of(moved_unit_bits))
