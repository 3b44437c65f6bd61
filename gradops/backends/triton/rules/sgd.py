"""SGD, with momentum and Nesterov's, in Triton; see csrc/math/rules/sgd.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

# Variants: plain, with momentum, with Nesterov's.
MOMENTS = ((), (0,), (0,))
COEFS = 4


def variant_of(hyper: Sequence[float]) -> int:
    momentum, _, nesterov = hyper
    return 0 if momentum == 0 else 1 + int(nesterov)


@triton.jit
def coefficients(hyper, lr, step):
    """The first update takes the gradient for the buffer, undampened."""
    momentum, dampening = tl.load(hyper), tl.load(hyper + 1)
    kept = tl.where(step > 1.0, momentum, 0.0)
    added = tl.where(step > 1.0, 1.0 - dampening, 1.0)
    return lr, momentum, kept, added


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    lr, momentum, kept, added = coefs
    direction = grad
    new_moments = moments
    if VARIANT > 0:
        direction = kept * moments[0] + added * grad
        new_moments = (direction,)
    if VARIANT == 2:
        direction = grad + momentum * direction
    return param - lr * direction, new_moments
