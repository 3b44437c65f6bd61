"""What a tracked update leaves of a row: how far it moved the parameter, and the size of what it stored."""

import triton
import triton.language as tl

from gradops.backends.triton.math import MERGE_LEVELS, merge_stats
from gradops.backends.triton.rows import CHUNKS, FIRST_CHUNK, NUMEL, SKIP, TAKES_PART


@triton.jit
def row_norm(sums, counts, chunk_count, row):
    """The L2 norm of a row whose chunks' sums of squares are known, in float64."""
    first, chunks = tl.load(row + FIRST_CHUNK), tl.load(row + CHUNKS)
    total, scale, _, _ = merge_stats(sums, counts, chunk_count, first, chunks, 2.0, 2, MERGE_LEVELS)
    return scale * tl.sqrt(total)


@triton.jit
def write_updates(row, decision, param_sums, moved_sums, counts, chunk_count, update_ratio, param_rms):
    """Writes one element of the rows `update_ratio` and `param_rms`; a skipped step has no ratio and changes no RMS."""
    takes_part = tl.load(row + TAKES_PART) != 0
    if tl.load(decision + SKIP) != 0:
        tl.store(update_ratio, tl.where(takes_part, float("nan"), 0.0))
    elif takes_part:
        norm = row_norm(param_sums, counts, chunk_count, row)
        moved = row_norm(moved_sums, counts, chunk_count, row)
        ratio = tl.where(norm == 0, float("inf"), moved / tl.where(norm == 0, 1.0, norm))
        tl.store(update_ratio, tl.where(moved == 0, 0.0, ratio).to(tl.float32))
        numel = tl.maximum(tl.load(row + NUMEL), 1).to(tl.float64)
        tl.store(param_rms, (norm / tl.sqrt(numel)).to(tl.float32))
    else:
        tl.store(update_ratio, 0.0)
        tl.store(param_rms, 0.0)


@triton.jit
def write_norms(row, decision, param_sums, moved_sums, counts, chunk_count, norms):
    """For an exchange the norms of the move and of what was stored, two elements in float64; 0 where nothing moved."""
    if (tl.load(decision + SKIP) == 0) & (tl.load(row + TAKES_PART) != 0):
        norm = row_norm(param_sums, counts, chunk_count, row)
        moved = row_norm(moved_sums, counts, chunk_count, row)
        tl.store(norms, moved)
        tl.store(norms + 1, norm)
    else:
        tl.store(norms, 0.0)
        tl.store(norms + 1, 0.0)
