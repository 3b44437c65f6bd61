"""RMSprop, centered or not, with and without momentum, in Triton; see csrc/math/rules/rmsprop.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

# Variants: + 1 with momentum, + 2 centered.
MOMENTS = ((0,), (0, 1), (0, 2), (0, 1, 2))
COEFS = 5


def variant_of(hyper: Sequence[float]) -> int:
    _, _, momentum, centered = hyper
    return int(momentum > 0) + 2 * int(centered)


@triton.jit
def coefficients(hyper, lr, step):
    alpha, eps, momentum = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    return lr, alpha, 1.0 - alpha, eps, momentum


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    lr, alpha, one_minus_alpha, eps, momentum = coefs
    square_avg = moments[0] * alpha + one_minus_alpha * grad * grad
    variance = square_avg
    if VARIANT >= 2:
        grad_avg = moments[VARIANT - 1]
        grad_avg += (grad - grad_avg) * one_minus_alpha
        variance = square_avg - grad_avg * grad_avg
        variance = tl.where(variance < 0.0, 0.0, variance)
    direction = tl.div_rn(grad, tl.sqrt_rn(variance) + eps)
    if VARIANT % 2 == 1:
        direction = momentum * moments[1] + direction
    if VARIANT == 0:
        new_moments = (square_avg,)
    elif VARIANT == 1:
        new_moments = (square_avg, direction)
    elif VARIANT == 2:
        new_moments = (square_avg, grad_avg)
    else:
        new_moments = (square_avg, direction, grad_avg)
    return param - lr * direction, new_moments
