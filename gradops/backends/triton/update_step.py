"""The last kernel of a step in Triton: updates as the first one decided."""

import triton
import triton.language as tl

from gradops.backends.triton.agc import UNIT_WORDS, units_of
from gradops.backends.triton.row_stats import write_norms, write_updates
from gradops.backends.triton.rows import (
    CAPPED,
    CHUNK,
    CHUNKS,
    CLIP_VALUE,
    EMA_WEIGHT,
    FIRST_CHUNK,
    GROUP,
    KIND,
    OWN_COEFS,
    OWN_HYPER,
    ROW_WORDS,
    SCALAR,
    SKIP,
    STEP,
    TAKES_PART,
    kinds_end,
)
from gradops.backends.triton.update import update_chunk


@triton.jit
def count_update(row, groups, NEXT_SCALAR: tl.constexpr, HYPER: tl.constexpr):
    """Moves the row's numbers: its step, and what the rule's state has beside it."""
    counter = tl.load(row + STEP).to(tl.pointer_type(tl.float32))
    step = tl.load(counter) + 1.0
    tl.store(counter, step)
    if NEXT_SCALAR is not None:
        scalar = tl.load(row + SCALAR).to(tl.pointer_type(tl.float32))
        hyper = groups + tl.load(row + GROUP) * (OWN_HYPER + HYPER) + OWN_HYPER
        tl.store(scalar, NEXT_SCALAR(hyper, step.to(tl.float64), tl.load(scalar)))


@triton.jit(do_not_specialize=["chunk_count"])
def update_step_kernel(
    rows,
    chunk_rows,
    layouts,
    groups,
    settings,
    row_coefs,
    decision,
    param_sums,
    param_counts,
    moved_sums,
    tickets,
    capped,
    update_ratio,
    param_rms,
    update_norms,
    units,
    unit_coefs,
    chunk_count,
    ELEMENT: tl.constexpr,
    COEFS: tl.constexpr,
    MOMENTS: tl.constexpr,
    NEXT_SCALAR: tl.constexpr,
    HYPER: tl.constexpr,
    KINDS_HERE: tl.constexpr,
    SQUARES: tl.constexpr,
    TRACKS: tl.constexpr,
    AVERAGES: tl.constexpr,
    MASTERS: tl.constexpr,
    COMPENSATES: tl.constexpr,
):
    """Updates one chunk; with TRACKS the last program of a row writes how far, to `update_norms` for an exchange.

    `ELEMENT`, `COEFS`, `MOMENTS` and `NEXT_SCALAR` (or None) are those of `gradops.backends.triton.rules`; a group has
    `HYPER` numbers of the rule's; `SQUARES`: sums of the stored parameters' squares are kept, as TRACKS needs, too;
    `KINDS_HERE` has a bit for each kind that rows have; `MASTERS`: half precision has masters;
    `COMPENSATES`: it has compensations; `AVERAGES`: rows have averages. `units` and `unit_coefs` are None where
    gradients are not clipped by units.
    """
    # Backwards: gradients that were read last are the likeliest to be in the cache still.
    chunk = chunk_count - 1 - tl.program_id(0)
    index = tl.load(chunk_rows + chunk)
    row = rows + index.to(tl.int64) * ROW_WORDS
    coefs = row_coefs + index.to(tl.int64) * (OWN_COEFS + COEFS)
    first = tl.load(row + FIRST_CHUNK)
    moves = (tl.load(decision + SKIP) == 0) & (tl.load(row + TAKES_PART) != 0)
    if chunk == first:
        tl.store(capped + index, moves & (tl.load(coefs + CAPPED) != 0))
        if moves:
            count_update(row, groups, NEXT_SCALAR, HYPER)
    kind = tl.where(moves, tl.load(row + KIND), -1)
    clip_value = tl.load(settings + CLIP_VALUE).to(tl.float32)
    row_units = None
    if units is not None:
        row_units = units_of(units + index.to(tl.int64) * UNIT_WORDS, unit_coefs)
    ema_weight = None
    if AVERAGES:
        ema_weight = tl.load(coefs + EMA_WEIGHT)
    for each in tl.static_range(kinds_end(KINDS_HERE)):
        if KINDS_HERE & (1 << each):
            if kind == each:
                begin = (chunk - first) * CHUNK
                update_chunk(
                    row, layouts, begin, coefs, decision, clip_value, row_units, ema_weight, param_sums + chunk,
                    moved_sums + chunk, chunk_count, ELEMENT, COEFS, MOMENTS, each, SQUARES, TRACKS, MASTERS,
                    COMPENSATES,
                )  # fmt: skip
    if TRACKS:
        if tl.atomic_add(tickets + index, 1, sem="acq_rel") == tl.load(row + CHUNKS) - 1:
            tl.store(tickets + index, 0)
            if update_norms is not None:
                norms = update_norms + 2 * index
                write_norms(row, decision, param_sums, moved_sums, param_counts, chunk_count, norms)
            else:
                write_updates(
                    row,
                    decision,
                    param_sums,
                    moved_sums,
                    param_counts,
                    chunk_count,
                    update_ratio + index,
                    param_rms + index,
                )
