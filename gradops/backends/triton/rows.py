"""What the Triton kernels read: the words of the tables, and the elements of one chunk.

A row is one parameter. It is cut into chunks in the order in which its parameter lies in memory; one program takes one
chunk, tile by tile. A tile is as large as the threads of a program can read at once in 128-bit accesses of 16-bit
elements.
"""

import triton
import triton.language as tl

from gradops.backends.triton.triton_before_3_5 import constexpr_function

CHUNK = tl.constexpr(8192)
TILE = tl.constexpr(1024)
TILE_LEVELS = tl.constexpr(10)  # 2^10 elements
# Where elements are updated one by one: fewer at once, since each takes the registers of four addresses.
SMALL_TILE = tl.constexpr(256)
SMALL_TILE_LEVELS = tl.constexpr(8)
SMALL_TILES = tl.constexpr(4)  # in a tile

# The words of a row; addresses are 0 where there is nothing.
# PARAM is what is updated: with a master that, and then ROUNDED is the parameter. COMPENSATION is what rounding took
# off the parameter, EMA the average of what is updated. The moments of the update rule follow, in the rule's order.
PARAM, GRAD, ROUNDED, COMPENSATION, EMA, MOMENT0, MOMENT1, MOMENT2 = (tl.constexpr(i) for i in range(8))
STEP = tl.constexpr(8)
NUMEL = tl.constexpr(9)
FIRST_CHUNK = tl.constexpr(10)
CHUNKS = tl.constexpr(11)
GROUP = tl.constexpr(12)
TAKES_PART = tl.constexpr(13)
KIND = tl.constexpr(14)
IN_VECTORS = tl.constexpr(15)  # whether every tensor lies in one order without gaps and begins at 16 bytes
LAYOUT = tl.constexpr(16)  # place of its layout
SCALAR = tl.constexpr(17)  # the number beside the step, where the rule's state has one
ROW_WORDS = tl.constexpr(18)

# A layout is the number of dimensions, then for each, innermost first, its size and the stride in each tensor.
TENSORS = tl.constexpr(8)

# A kind says which code a row takes: dtype of the parameter + 3 * dtype of the gradient + 9 * dtype of the moments,
# which is not float16, + 18 * variant of the rule.
FLOAT32, BFLOAT16, FLOAT16 = (tl.constexpr(i) for i in range(3))

# What `plan_row` leaves for the update of a row: these, then the rule's own coefficients. EMA_WEIGHT is only written
# where there are averages.
GRAD_SIGN, L1, L2, DECAY, CAPPED, EMA_WEIGHT = (tl.constexpr(i) for i in range(6))
OWN_COEFS = tl.constexpr(6)

# The words of a param group, in float64: these, then the rule's own hyper-parameters. A tensor lr stands in a table of
# its own.
LR, LR_IS_DOUBLE, WEIGHT_DECAY, DECOUPLED, MAXIMIZE, L1_OF = (tl.constexpr(i) for i in range(6))
OWN_HYPER = tl.constexpr(6)

# The words of the step's settings, in float64.
MAX_NORM, NORM_TYPE, CLIP_VALUE, CAP, FLOOR, WARMUP_STEPS = (tl.constexpr(i) for i in range(6))
GROWTH_FACTOR, BACKOFF_FACTOR, GROWTH_INTERVAL, MIN_SCALE, MAX_SCALE = (tl.constexpr(i) for i in range(6, 11))
RATIO, Z_SCORE, SKIPS, LR_CUT, LR_GROWTH, MIN_LR_FACTOR = (tl.constexpr(i) for i in range(11, 17))
HISTORY, GUARD_WARMUP = (tl.constexpr(i) for i in range(17, 19))
AGC_RATIO = tl.constexpr(19)
EMA_DECAY, EMA_MIN_DECAY, EMA_INV_GAMMA, EMA_POWER = (tl.constexpr(i) for i in range(20, 24))
EMA_TAU, EMA_START, EMA_EVERY = (tl.constexpr(i) for i in range(24, 27))

# The guard's scalars, behind the loss scale; norms seen are the counter behind its tracker.
GUARDED, LR_FACTOR_USED, LR_FACTOR, USUAL_NORM, DEVIATION = (tl.constexpr(i) for i in range(5, 10))
NORMS_SEEN = tl.constexpr(3)

# What the first kernel leaves for the second.
INV_SCALE, CLIP_COEF, SKIP = (tl.constexpr(i) for i in range(3))


@constexpr_function
def element_of(dtype):
    """The type that a dtype's code stands for."""
    return (tl.float32, tl.bfloat16, tl.float16)[dtype]


@constexpr_function
def updated_dtype(kind, masters):
    """The code of the dtype of what is updated: masters are float32."""
    return 0 if masters else kind % 3


@constexpr_function
def moments_dtype(kind):
    return kind // 9 % 2


@constexpr_function
def rule_variant(kind):
    return kind // 18


@constexpr_function
def kinds_end(kinds_here):
    """One more than the largest kind, of which each has its bit."""
    return kinds_here.bit_length()


@constexpr_function
def moment_count(moments, kind):
    """How many moments a row of this kind has; `moments` are the slots of each variant."""
    return len(moments[kind // 18])


@constexpr_function
def moment_at(moments, kind, place):
    """The word of one of them."""
    return MOMENT0.value + moments[kind // 18][place]


@constexpr_function
def is_rounded(kind, masters):
    """Whether a row of this kind has a master."""
    return masters and kind % 3 != 0


@constexpr_function
def is_compensated(kind, compensates):
    """Whether a row of this kind keeps what rounding takes off its parameter."""
    return compensates and kind % 3 != 0


@triton.jit
def loaded(words, COUNT: tl.constexpr):
    """COUNT words, loaded before a loop: a compiler must not do so, for all it knows of what the loop stores."""
    values = ()
    for place in tl.static_range(COUNT):
        values = values + (tl.load(words + place),)
    return values


@triton.jit
def addresses_of(row):
    """Every tensor's."""
    return loaded(row + PARAM, TENSORS)


@triton.jit
def vectors_of(addresses, at, TENSOR: tl.constexpr, DTYPE: tl.constexpr):
    """Pointers to a tile of a tensor that is accessed in vectors."""
    # The hint must stand beside the cast: it would not survive the end of a function.
    pointer = tl.multiple_of(addresses[TENSOR].to(tl.pointer_type(element_of(DTYPE))), 16)
    return pointer + at + tl.arange(0, TILE)


@triton.jit
def elements_of(addresses, row, layouts, at, TENSOR: tl.constexpr, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    """Pointers to SIZE elements, wherever they lie."""
    return places_of(addresses, row, layouts, at + tl.arange(0, SIZE), TENSOR, DTYPE)


@triton.jit
def places_of(addresses, row, layouts, index, TENSOR: tl.constexpr, DTYPE: tl.constexpr):
    """Pointers to the elements with these indices, in the order of the row."""
    layout = layouts + tl.load(row + LAYOUT)
    dims = tl.load(layout)
    left = index
    place = tl.zeros(index.shape, tl.int64)
    dim = layout + 1
    for _ in range(1, dims):
        size = tl.load(dim)
        outer = left // size
        place += (left - outer * size) * tl.load(dim + 1 + TENSOR)
        left = outer
        dim += 1 + TENSORS
    return addresses[TENSOR].to(tl.pointer_type(element_of(DTYPE))) + place + left * tl.load(dim + 1 + TENSOR)


@triton.jit
def pointers_of(
    addresses,
    row,
    layouts,
    at,
    TENSOR: tl.constexpr,
    DTYPE: tl.constexpr,
    VECTORS: tl.constexpr,
    SIZE: tl.constexpr = TILE,
):
    """Pointers to a tile, by whichever way it lies."""
    if VECTORS:
        return vectors_of(addresses, at, TENSOR, DTYPE)
    return elements_of(addresses, row, layouts, at, TENSOR, DTYPE, SIZE)
