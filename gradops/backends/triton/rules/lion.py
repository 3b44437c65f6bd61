"""Lion in Triton; see csrc/math/rules/lion.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

MOMENTS = ((0,),)
COEFS = 5


def variant_of(hyper: Sequence[float]) -> int:
    return 0


@triton.jit
def coefficients(hyper, lr, step):
    beta1, beta2 = tl.load(hyper), tl.load(hyper + 1)
    return lr, beta1, 1.0 - beta1, beta2, 1.0 - beta2


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    lr, beta1, one_minus_beta1, beta2, one_minus_beta2 = coefs
    exp_avg = moments[0]
    direction = beta1 * exp_avg + one_minus_beta1 * grad
    step = tl.where(direction > 0, lr, tl.where(direction < 0, -lr, 0.0))
    return param - step, (beta2 * exp_avg + one_minus_beta2 * grad,)
