"""csrc/math for Triton: the one deliberate second copy, held to the same oracle by the same tests.

Sums are trees of pairs, so that their order depends neither on the dtype nor on the width of the accesses or the number
of warps, and the interpreter adds as a GPU does. Every quotient and root of an element is the rounded one. `NORM` is 1
or 2 for those p, 0 for inf and 3 for any other. What an update rule adds stands in `rules`.
"""

import triton
import triton.language as tl

INF_BITS = tl.constexpr(0x7F800000)
SMALLEST_NORMAL = tl.constexpr(2.0**-126)
# Bits of 2^-126 and 2^126, whose inverses are numbers too, and what the bits of a scale and of its inverse add up to.
SMALLEST_SCALE = tl.constexpr(0x00800000)
LARGEST_SCALE = tl.constexpr(0x7E800000)
ONE_SQUARED = tl.constexpr(0x7F000000)
LARGEST = tl.constexpr(3.4028234663852886e38)
# A square below 2^-126 may vanish; 2^12 of them stay below 2^-32 of a sum of 2^-80.
EXACT_SQUARES = tl.constexpr(2.0**-80)

# Many entries are merged on 2^8 lanes.
MERGE_LEVELS = tl.constexpr(8)


@triton.jit
def tree_sum(x, LEVELS: tl.constexpr):
    """The sum of 2^LEVELS values, neighbours first. Of two values there is one sum, however the compiler takes it."""
    for level in tl.static_range(1, LEVELS):
        x = tl.sum(tl.reshape(x, [2 ** (LEVELS - level), 2]), axis=1)
    return tl.sum(x)


@triton.jit
def clamp_grad(x, clip_value):
    """x inside ±clip_value; a NaN fails both comparisons and stays."""
    x = tl.where(x > clip_value, clip_value, x)
    return tl.where(x < -clip_value, -clip_value, x)


@triton.jit
def abs_bits_of(x):
    """|x| as an integer: in the order of numbers, inf above every number and NaN above inf."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def float_of(bits):
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def root_of(x, p, NORM: tl.constexpr):
    """x^(1/p) in float64."""
    if NORM == 1:
        root = x
    elif NORM == 2:
        root = tl.sqrt(x)
    else:
        root = tl.exp2(tl.log2(x) / p)
    return root


@triton.jit
def power_of(x, p, NORM: tl.constexpr):
    """x^p of what is not negative, in the precision of x."""
    if NORM == 1:
        power = x
    elif NORM == 2:
        power = x * x
    else:
        power = tl.where(x > 0, tl.exp2(p.to(x.dtype) * tl.log2(tl.where(x > 0, x, 1.0))), 0.0)
    return power


@triton.jit
def needs_scale(total, abs_max_bits, NORM: tl.constexpr):
    """Whether a plain float32 sum of powers lost something; other powers than 1 and 2 have no plain sum."""
    finite = (abs_max_bits > 0) & (abs_max_bits < INF_BITS)
    if NORM == 0:
        needs = False
    elif NORM == 1:
        needs = finite & (total > LARGEST)
    elif NORM == 2:
        needs = finite & ((total > LARGEST) | (total < EXACT_SQUARES))
    else:
        needs = finite
    return needs


@triton.jit
def scale_of(largest, NORM: tl.constexpr):
    """The scale for a chunk with this largest element; for p = 1 and 2 a power of two, so that quotients are exact."""
    scale = tl.maximum(largest, SMALLEST_NORMAL)
    if NORM < 3:
        scale = float_of(abs_bits_of(scale) & INF_BITS)
    return scale


@triton.jit
def merge_stats(sums, counts, stride, first, count, p, NORM: tl.constexpr, LEVELS: tl.constexpr):
    """Merges `count` entries, in the fixed order of 2^LEVELS lanes and a tree over them.

    `sums` holds all entries' sums and then, `stride` further, their scales; `counts` their largest absolute values, as
    bits, and their numbers of elements that are not finite.
    """
    lanes = tl.arange(0, 2**LEVELS)
    scales = tl.zeros([2**LEVELS], tl.float64)
    abs_max_bits = tl.zeros([2**LEVELS], tl.int64)
    nonfinite = tl.zeros([2**LEVELS], tl.int64)
    for begin in range(0, count, 2**LEVELS):
        at = first + begin + lanes
        inside = begin + lanes < count
        part = tl.load(sums + at, mask=inside, other=0.0)
        scales = tl.maximum(scales, tl.where(part > 0, tl.load(sums + stride + at, mask=inside, other=0.0), 0.0))
        abs_max_bits = tl.maximum(abs_max_bits, tl.load(counts + at, mask=inside, other=0))
        nonfinite += tl.load(counts + stride + at, mask=inside, other=0)
    scale = tl.max(scales)
    scale = tl.where(scale > 0, scale, 1.0)
    total = tl.zeros([2**LEVELS], tl.float64)
    for begin in range(0, count, 2**LEVELS):
        at = first + begin + lanes
        inside = begin + lanes < count
        part = tl.load(sums + at, mask=inside, other=0.0)
        ratio = tl.load(sums + stride + at, mask=inside, other=0.0) / scale
        # A sum of 0 has scale 1, which may be so far above the others that its power is inf. A NaN is no 0.
        total += tl.where(part != 0, part * power_of(ratio, p, NORM), 0.0)
    return tree_sum(total, LEVELS), scale, tl.max(abs_max_bits), tl.sum(nonfinite)


@triton.jit
def norm_of(total, scale, abs_max_bits, nonfinite, clip_value, p, NORM: tl.constexpr):
    """In float64; NaN if any element is NaN, else inf if any is inf."""
    abs_max = float_of(abs_max_bits)
    if NORM == 0:
        norm = tl.minimum(abs_max, clip_value).to(tl.float64)
    else:
        norm = tl.where(total > 0, scale * root_of(tl.where(total > 0, total, 1.0), p, NORM), 0.0)
    return tl.where(nonfinite != 0, abs_max.to(tl.float64), norm)


@triton.jit
def add_squares(sums, scale_bits, x):
    """Adds to each lane's sum of squares, which is kept in a scale of the lane's own, for values that pass only once.

    A scale is a power of two, no smaller than any value of the lane but one beyond 2^126, and given by its bits.
    """
    own = tl.minimum(tl.maximum(abs_bits_of(x) & INF_BITS, SMALLEST_SCALE), LARGEST_SCALE)
    larger = tl.maximum(scale_bits, own)
    inverse = inverse_scale(larger)
    down = float_of(scale_bits) * inverse
    x = x * inverse
    return sums * down * down + x * x, larger


@triton.jit
def inverse_scale(scale_bits):
    return float_of(-scale_bits + ONE_SQUARED)


@triton.jit
def merge_squares(sums, scale_bits, LEVELS: tl.constexpr):
    """The lanes' sums as one in the order of `tree_sum`, and the bits of its scale."""
    largest = tl.max(scale_bits)
    down = float_of(scale_bits) * inverse_scale(largest)
    return tree_sum(sums * down * down, LEVELS), largest


@triton.jit
def clip_coef_of(grad_norm, max_norm):
    """min(1, max_norm / (grad_norm + 1e-6)), the formula of torch.nn.utils.clip_grad_norm_; in float64."""
    coef = tl.where(max_norm < float("inf"), max_norm / (grad_norm + 1e-6), 1.0)
    return tl.where(coef < 1.0, coef, 1.0).to(tl.float32)


@triton.jit
def integer_power(base, exponent):
    """base^exponent in float64, of a whole exponent below 2^25: what float32 counts."""
    result = base * 0 + 1.0
    left = exponent.to(tl.int32)
    while left > 0:
        result = tl.where(left % 2 == 1, result * base, result)
        base = base * base
        left = left // 2
    return result


@triton.jit
def lerp_coef(beta):
    """What `lerp` takes for beta."""
    return tl.where(beta > 0.5, 1.0, 0.0) - beta


@triton.jit
def lerp(average, value, coef, FROM_VALUE: tl.constexpr):
    """beta * average + (1 - beta) * value, from the end that weighs more, as torch.lerp; see csrc/math/lerp.h."""
    change = (value - average) * coef
    return value + change if FROM_VALUE else average + change


@triton.jit
def left_by_rounding(x, rounded):
    """What storing x takes off it; 0 where what is stored is inf or NaN."""
    left = x - rounded
    return tl.where(left - left == 0.0, left, 0.0)


@triton.jit
def regularise(param, grad, grad_sign, l1, l2, decay):
    """What every rule's update begins with: `maximize`, L1, and weight decay of one kind or the other."""
    grad = grad * grad_sign
    grad += tl.where(param > 0, l1, tl.where(param < 0, -l1, 0.0))
    grad = tl.where(l2 != 0, grad + l2 * param, grad)
    return tl.where(decay != 0, param - decay * param, param), grad
