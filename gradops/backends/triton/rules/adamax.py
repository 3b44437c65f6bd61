"""Adamax in Triton; see csrc/math/rules/adamax.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

from gradops.backends.triton.math import integer_power

# Variants: 1 where the gradient weighs more in the first moment than the old one does.
MOMENTS = ((0, 1), (0, 1))
COEFS = 4


def variant_of(hyper: Sequence[float]) -> int:
    beta1, *_ = hyper
    return int(beta1 <= 0.5)


@triton.jit
def coefficients(hyper, lr, step):
    beta1, beta2, eps = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    exp_avg_coef = tl.where(beta1 > 0.5, 1.0, 0.0) - beta1
    return exp_avg_coef, beta2, eps, lr / (1.0 - integer_power(beta1, step))


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    exp_avg_coef, beta2, eps, step_size = coefs
    # From the end that weighs more, as torch.lerp.
    begin = grad if VARIANT == 1 else moments[0]
    exp_avg = begin + (grad - moments[0]) * exp_avg_coef
    kept, size = beta2 * moments[1], tl.abs(grad) + eps
    exp_inf = tl.where(kept > size, kept, size)
    return param - step_size * tl.div_rn(exp_avg, exp_inf), (exp_avg, exp_inf)
