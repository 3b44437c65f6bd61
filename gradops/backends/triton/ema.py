"""The average of the weights in Triton; see csrc/math/ema.h."""

import triton
import triton.language as tl

from gradops.backends.triton.rows import (
    EMA_DECAY,
    EMA_EVERY,
    EMA_INV_GAMMA,
    EMA_MIN_DECAY,
    EMA_POWER,
    EMA_START,
    EMA_TAU,
)

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def ema_weight_of(settings, step):
    """What the average takes of a parameter in its update number `step`, in float64; 0 where that is left out."""
    turn = step / tl.load(settings + EMA_EVERY)
    n = turn - tl.load(settings + EMA_START)
    counted = tl.maximum(n, 0.0)
    decay = tl.load(settings + EMA_DECAY)
    inv_gamma, tau = tl.load(settings + EMA_INV_GAMMA), tl.load(settings + EMA_TAU)
    if inv_gamma > 0:
        warm = 1.0 - tl.exp2(-tl.load(settings + EMA_POWER) * tl.log2(1.0 + counted / inv_gamma))
        decay = tl.maximum(tl.minimum(decay, warm), tl.load(settings + EMA_MIN_DECAY))
    if tau > 0:
        decay = decay * (1.0 - tl.exp2(-counted / tau * LOG2_E))
    weight = tl.where(n > 0, 1.0 - decay, 1.0)
    return tl.where(turn == tl.floor(turn), weight, 0.0)


@triton.jit
def averaged(average, value, weight):
    """From the end that weighs more, so that a weight of 1 copies."""
    away = value - average
    return tl.where(weight < 0.5, average + weight * away, value - (1.0 - weight) * away)
