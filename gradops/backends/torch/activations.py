"""Statistics of one activation tensor in torch's own operations; see csrc/math/activation_stats.h for how."""

import torch
from torch import Tensor

from gradops.backends.torch import math as torch_math

# The histogram's edges are the powers of two between these, of either sign, and 0: exact to tell apart in a float's
# exponent, and reaching from what rounds away beside 1 to float16's largest value.
LOWEST_EXPONENT = -10
HIGHEST_EXPONENT = 16
BINS_PER_SIGN = HIGHEST_EXPONENT - LOWEST_EXPONENT + 2
BINS = 2 * BINS_PER_SIGN
# What is counted before the histogram: elements, near zero, negative, not finite.
COUNTS = 4

_EXPONENT_BIAS = 127


def activation_stats(x: Tensor, near_zero: float) -> tuple[Tensor, Tensor]:
    """The operator of this name, of what has been checked; see `gradops.ops`."""
    values = x.detach().reshape(-1).float()
    finite = values.isfinite()
    clean = torch.where(finite, values, 0.0)
    counts = _counts(values, clean, finite, near_zero)
    wide = clean.to(torch_math.wide_dtype(x.device))
    n = finite.sum()
    mean = torch_math.block_sum(wide) / n
    # Divided by the largest value, or squares could leave the range of a device without float64.
    largest = clean.abs().amax() if clean.numel() else torch.zeros((), dtype=torch.float32, device=x.device)
    scale = torch.where(largest > 0, largest, 1.0)
    squares = torch_math.block_sum(torch.where(finite, (wide - mean) / scale, 0.0).square())
    std = scale * (squares / n).sqrt()
    nothing = n == 0
    measures = torch.stack([mean, std, largest.to(mean.dtype)]).masked_fill(nothing, float("nan"))
    return measures.float(), counts


def _counts(values: Tensor, clean: Tensor, finite: Tensor, near_zero: float) -> Tensor:
    exponent = (clean.view(torch.int32) & 0x7FFFFFFF) >> 23
    bins = (exponent - (_EXPONENT_BIAS + LOWEST_EXPONENT) + 1).clamp(0, BINS_PER_SIGN - 1)
    bins = torch.where(clean < 0, BINS_PER_SIGN - 1 - bins, BINS_PER_SIGN + bins)
    bins = torch.where(finite, bins, BINS).long()
    histogram = torch.zeros(BINS + 1, dtype=torch.int64, device=values.device)
    histogram.scatter_add_(0, bins, torch.ones_like(bins))
    numel = torch.full_like(histogram[:1], values.numel())
    near = (values.abs() <= near_zero).sum().reshape(1)
    negative = histogram[:BINS_PER_SIGN].sum().reshape(1)
    return torch.cat([numel, near, negative, histogram[BINS:], histogram[:BINS]])
