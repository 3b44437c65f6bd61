"""What the Triton kernels read: the words of the tables, and the elements of one chunk.

A row is one parameter. It is cut into chunks of 4096 elements in the order in which its parameter lies in memory; one
program takes one chunk.
"""

import triton
import triton.language as tl

CHUNK = tl.constexpr(4096)
CHUNK_LEVELS = tl.constexpr(12)  # 2^12 elements

# The words of a row; addresses are 0 where there is nothing.
PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MAX_EXP_AVG_SQ = (tl.constexpr(i) for i in range(5))
STEP = tl.constexpr(5)
NUMEL = tl.constexpr(6)
FIRST_CHUNK = tl.constexpr(7)
CHUNKS = tl.constexpr(8)
GROUP = tl.constexpr(9)
TAKES_PART = tl.constexpr(10)
KIND = tl.constexpr(11)
IN_VECTORS = tl.constexpr(12)  # whether every tensor lies in one order without gaps and begins at 16 bytes
LAYOUT = tl.constexpr(13)  # place of its layout
ROW_WORDS = tl.constexpr(14)

# A layout is the number of dimensions, then for each, innermost first, its size and the stride in each tensor.
TENSORS = tl.constexpr(5)

# A kind says which code a row takes: dtype of the parameter + 3 * dtype of the gradient + 9 * amsgrad.
FLOAT32, BFLOAT16, FLOAT16 = (tl.constexpr(i) for i in range(3))
KINDS = tl.constexpr(18)

# What `plan_row` leaves for the update of a row.
GRAD_SIGN, ONE_MINUS_BETA1, BETA2, ONE_MINUS_BETA2, EPS, L2, DECAY, STEP_SIZE = (tl.constexpr(i) for i in range(8))
INV_BIAS_CORRECTION2_SQRT = tl.constexpr(8)
CAPPED = tl.constexpr(9)
RULE_WORDS = tl.constexpr(10)

# The words of a param group's hyper-parameters, in float64; a tensor lr stands in a table of its own.
LR, BETA1_OF, BETA2_OF, EPS_OF, WEIGHT_DECAY, DECOUPLED, MAXIMIZE = (tl.constexpr(i) for i in range(7))
LR_IS_DOUBLE = tl.constexpr(7)
GROUP_WORDS = tl.constexpr(8)

# The words of the step's settings, in float64.
MAX_NORM, NORM_TYPE, CLIP_VALUE, CAP, FLOOR, WARMUP_STEPS = (tl.constexpr(i) for i in range(6))
GROWTH_FACTOR, BACKOFF_FACTOR, GROWTH_INTERVAL, MIN_SCALE, MAX_SCALE = (tl.constexpr(i) for i in range(6, 11))

# What the first kernel tells the second.
INV_SCALE, CLIP_COEF, SKIP = (tl.constexpr(i) for i in range(3))


@triton.jit
def address(row, TENSOR: tl.constexpr, DTYPE: tl.constexpr):
    """A tensor's address as a pointer."""
    word = tl.load(row + TENSOR)
    if DTYPE == 0:
        pointer = word.to(tl.pointer_type(tl.float32))
    elif DTYPE == 1:
        pointer = word.to(tl.pointer_type(tl.bfloat16))
    else:
        pointer = word.to(tl.pointer_type(tl.float16))
    return pointer


@triton.jit
def vector(row, begin, TENSOR: tl.constexpr, DTYPE: tl.constexpr):
    """Pointers to a full chunk that is accessed in vectors."""
    pointer = tl.multiple_of(address(row, TENSOR, DTYPE), 16)
    return pointer + begin + tl.max_contiguous(tl.arange(0, CHUNK), CHUNK)


@triton.jit
def scattered(row, layouts, begin, TENSOR: tl.constexpr, DTYPE: tl.constexpr):
    """Pointers to the elements of a chunk, wherever they lie."""
    layout = layouts + tl.load(row + LAYOUT)
    dims = tl.load(layout)
    left = begin + tl.arange(0, CHUNK)
    place = tl.zeros([CHUNK], tl.int64)
    dim = layout + 1
    for _ in range(1, dims):
        size = tl.load(dim)
        place += left % size * tl.load(dim + 1 + TENSOR)
        left = left // size
        dim += 1 + TENSORS
    return address(row, TENSOR, DTYPE) + place + left * tl.load(dim + 1 + TENSOR)
