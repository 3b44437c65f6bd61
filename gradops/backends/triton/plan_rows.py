"""The kernel that plans the rows where that needs the decision: `max_relative_step` for updates as large as gradients,
and rules that scale gradients by their norms; and `max_relative_step` of rows of which processes have parts.

It runs between the two kernels of a step, one program a row. Wherever a row can be planned before all are measured, the
first kernel does it.
"""

import triton
import triton.language as tl

from gradops.backends.triton.decide import plan_row
from gradops.backends.triton.rows import CLIP_COEF, LR_FACTOR_USED, OWN_COEFS, ROW_WORDS, SKIP, TAKES_PART


@triton.jit(do_not_specialize=["row_count", "chunk_count"])
def plan_rows_kernel(
    rows,
    groups,
    lr_pointers,
    settings,
    decision,
    scalars,
    param_sums,
    param_counts,
    row_sums,
    param_norms,
    roots,
    row_coefs,
    row_count,
    chunk_count,
    COEFFICIENTS: tl.constexpr,
    NEXT_SCALAR: tl.constexpr,
    ADAPTS: tl.constexpr,
    GRAD_FACTOR: tl.constexpr,
    COEFS: tl.constexpr,
    HYPER: tl.constexpr,
    CAPS: tl.constexpr,
    AVERAGES: tl.constexpr,
    BY_GRADS: tl.constexpr,
):
    """Plans one row. `row_sums` are of squares; BY_GRADS: what a row takes depends on them.

    `param_norms` and `roots` have each whole row's L2 norm of what is updated and the root of its number of elements;
    they are None where rows are whole.
    """
    index = tl.program_id(0).to(tl.int64)
    row = rows + index * ROW_WORDS
    if (tl.load(decision + SKIP) == 0) & (tl.load(row + TAKES_PART) != 0):
        grad_norm = None
        whole_norm = None
        whole_root = None
        if BY_GRADS:
            norm = tl.load(row_sums + row_count + index) * tl.sqrt(tl.load(row_sums + index))
            grad_norm = norm * tl.load(decision + CLIP_COEF)
        if param_norms is not None:
            whole_norm, whole_root = tl.load(param_norms + index), tl.load(roots + index)
        coefs = row_coefs + index * (OWN_COEFS + COEFS)
        lr_factor = tl.load(scalars + LR_FACTOR_USED)
        plan_row(
            row, groups, lr_pointers, settings, lr_factor, param_sums, param_counts, chunk_count, grad_norm, whole_norm,
            whole_root, coefs, COEFFICIENTS, NEXT_SCALAR, ADAPTS, GRAD_FACTOR, HYPER, CAPS, AVERAGES,
        )  # fmt: skip
