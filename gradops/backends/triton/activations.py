"""Statistics of activations in Triton, one launch a tensor; see csrc/math/activation_stats.h for how.

A program measures one strip; the last one, known by a ticket, merges the strips in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradops.backends.torch.activations import BINS, BINS_PER_SIGN, COUNTS, LOWEST_EXPONENT
from gradops.backends.triton import step as triton_step
from gradops.backends.triton.math import INF_BITS, abs_bits_of, float_of, tree_sum
from gradops.backends.triton.triton_before_3_5 import histogram_of

STRIP = tl.constexpr(4096)
STRIP_LEVELS = tl.constexpr(12)  # 2^12 elements
MERGED_AT_ONCE = tl.constexpr(256)

FIRST_EXPONENT = tl.constexpr(127 + LOWEST_EXPONENT)  # as a float stores it
PER_SIGN = tl.constexpr(BINS_PER_SIGN)
ALL_BINS = tl.constexpr(BINS)  # values that are not finite are counted behind them
TABLE = tl.constexpr(64)  # a power of two that holds all of them
# What programs add up behind the histogram, in whole numbers.
NEAR_ZERO, LARGEST, TICKET = (tl.constexpr(64 + i) for i in range(3))
TOTALS = 64 + 3


@triton.jit
def bins_of(x, bits):
    """The bin of each value; ALL_BINS where it is not finite."""
    outward = tl.minimum(tl.maximum((bits >> 23) - FIRST_EXPONENT + 1, 0), PER_SIGN - 1)
    bins = tl.where(x < 0, PER_SIGN - 1 - outward, PER_SIGN + outward)
    return tl.where(bits < INF_BITS, bins, ALL_BINS)


@triton.jit
def inv_scale_of(largest):
    """The inverse of the power of two in which values up to this one, given as bits, are squared without loss."""
    exponent = largest >> 23
    plain = (largest == 0) | ((exponent >= 127 - 40) & (exponent <= 127 + 50))
    normal = tl.minimum(tl.maximum(exponent, 1), 253)
    return tl.where(plain, 1.0, float_of((254 - normal) << 23))


@triton.jit
def merge_strips(strips, strip_count):
    """Number, mean and sum of squared deviations of all strips, in float64."""
    lanes = tl.arange(0, MERGED_AT_ONCE)
    numbers = tl.zeros([MERGED_AT_ONCE], tl.float64)
    sums = tl.zeros([MERGED_AT_ONCE], tl.float64)
    for begin in range(0, strip_count, MERGED_AT_ONCE):
        at, inside = begin + lanes, begin + lanes < strip_count
        n = tl.load(strips + at, mask=inside, other=0.0)
        numbers += n
        sums += n * tl.load(strips + strip_count + at, mask=inside, other=0.0)
    number = tree_sum(numbers, 8)
    mean = tree_sum(sums, 8) / tl.maximum(number, 1.0)
    squares = tl.zeros([MERGED_AT_ONCE], tl.float64)
    for begin in range(0, strip_count, MERGED_AT_ONCE):
        at, inside = begin + lanes, begin + lanes < strip_count
        n = tl.load(strips + at, mask=inside, other=0.0)
        apart = tl.load(strips + strip_count + at, mask=inside, other=0.0) - mean
        squares += tl.load(strips + 2 * strip_count + at, mask=inside, other=0.0) + n * apart * apart
    return number, mean, tree_sum(squares, 8)


@triton.jit(do_not_specialize=["near_zero", "strip_count"])
def activation_stats_kernel(x, numel, near_zero, strips, totals, measures, counts, strip_count):
    strip = tl.program_id(0)
    at = strip.to(tl.int64) * STRIP + tl.arange(0, STRIP)
    inside = at < numel
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    bits = abs_bits_of(values)
    finite = inside & (bits < INF_BITS)
    largest = tl.max(tl.where(finite, bits, 0))
    inv_scale = inv_scale_of(largest)
    in_scale = tl.where(finite, values, 0.0) * inv_scale
    n = tl.sum(finite.to(tl.int32))
    some = tl.maximum(n, 1)
    mean = tree_sum(in_scale, STRIP_LEVELS) / some.to(tl.float32)
    apart = tl.where(finite, in_scale - mean, 0.0)
    deviations = tree_sum(apart, STRIP_LEVELS).to(tl.float64)
    squares = tree_sum(apart * apart, STRIP_LEVELS).to(tl.float64)
    scale = 1.0 / inv_scale.to(tl.float64)
    tl.store(strips + strip, n.to(tl.float64))
    tl.store(strips + strip_count + strip, (mean.to(tl.float64) + deviations / some) * scale)
    m2 = tl.maximum(squares - deviations * deviations / some, 0.0)
    tl.store(strips + 2 * strip_count + strip, m2 * scale * scale)
    table = tl.arange(0, TABLE)
    histogram = histogram_of(bins_of(values, bits), inside, TABLE).to(tl.int64)
    tl.atomic_add(totals + table, histogram, mask=histogram > 0, sem="relaxed")
    near = tl.sum((inside & (tl.abs(values) <= near_zero)).to(tl.int32))
    tl.atomic_add(totals + NEAR_ZERO, near.to(tl.int64), sem="relaxed")
    tl.atomic_max(totals + LARGEST, largest.to(tl.int64), sem="relaxed")
    if tl.atomic_add(totals + TICKET, 1, sem="acq_rel") == strip_count - 1:
        number, mean_of_all, squares_of_all = merge_strips(strips, strip_count)
        any_finite = number > 0
        std = tl.sqrt(squares_of_all / tl.maximum(number, 1.0))
        tl.store(measures, tl.where(any_finite, mean_of_all, float("nan")).to(tl.float32))
        tl.store(measures + 1, tl.where(any_finite, std, float("nan")).to(tl.float32))
        tl.store(measures + 2, tl.where(any_finite, float_of(tl.load(totals + LARGEST)), float("nan")))
        found = tl.load(totals + table)
        tl.store(counts, numel.to(tl.int64))
        tl.store(counts + 1, tl.load(totals + NEAR_ZERO))
        tl.store(counts + 2, tl.sum(tl.where(table < PER_SIGN, found, 0)))
        tl.store(counts + 3, tl.sum(tl.where(table == ALL_BINS, found, 0)))
        tl.store(counts + 4 + table, found, mask=table < ALL_BINS)


def activation_stats(x: Tensor, near_zero: float) -> tuple[Tensor, Tensor]:
    """As `gradops.backends.torch.activations.activation_stats`, for what has been checked."""
    values = _in_memory_order(x.detach())
    strip_count = -(-x.numel() // STRIP.value)
    measures = torch.full((3,), float("nan"), dtype=torch.float32, device=x.device)
    counts = torch.zeros(COUNTS + BINS, dtype=torch.int64, device=x.device)
    if strip_count:
        strips = torch.empty(3 * strip_count, dtype=torch.float64, device=x.device)
        totals = torch.zeros(TOTALS, dtype=torch.int64, device=x.device)
        outputs = {"strips": strips, "totals": totals, "measures": measures, "counts": counts}
        arguments = {"x": values, "numel": x.numel(), "near_zero": near_zero, **outputs, "strip_count": strip_count}
        triton_step.launch(activation_stats_kernel, strip_count, arguments)
    return measures, counts


def _in_memory_order(x: Tensor) -> Tensor:
    """The elements as one run: without a copy where memory has no gaps, whatever the order of the dimensions."""
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda dim: -strides[dim])
    # Not reshape: of evenly spaced elements it makes a view that keeps the gaps.
    return x.permute(order).contiguous()
