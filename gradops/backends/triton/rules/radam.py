"""RAdam in Triton; see csrc/math/rules/radam.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

from gradops.backends.triton.math import integer_power, lerp, lerp_coef

# Variants: + 1 where the gradient weighs more in the first moment than the old one does.
MOMENTS = ((0, 1), (0, 1))
COEFS = 6


def variant_of(hyper: Sequence[float]) -> int:
    return int(hyper[0] <= 0.5)


@triton.jit
def lengths_of(hyper, step):
    """Of the plain average that is as spread as the second moment: now, and at most."""
    beta2 = tl.load(hyper + 1)
    power = integer_power(beta2, step)
    longest = 2.0 / (1.0 - beta2) - 1.0
    return longest - 2.0 * step * power / (1.0 - power), longest


@triton.jit
def adapts(hyper, step):
    now, _ = lengths_of(hyper, step)
    return now > 5.0


@triton.jit
def coefficients(hyper, lr, step):
    beta1, beta2, eps = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    now, end = lengths_of(hyper, step)
    adapted = now > 5.0
    squared = tl.where(adapted, (now - 4.0) * (now - 2.0) * end / ((end - 4.0) * (end - 2.0) * now), 1.0)
    corrected = tl.where(adapted, squared * (1.0 - integer_power(beta2, step)), 1.0)
    step_size = lr / (1.0 - integer_power(beta1, step)) * tl.sqrt(corrected)
    return lerp_coef(beta1), beta2, 1.0 - beta2, eps, step_size, tl.where(adapted, 1.0, 0.0)


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    exp_avg_coef, beta2, one_minus_beta2, eps, step_size, adapted = coefs
    exp_avg = lerp(moments[0], grad, exp_avg_coef, VARIANT == 1)
    exp_avg_sq = moments[1] * beta2 + one_minus_beta2 * grad * grad
    denom = tl.where(adapted != 0, tl.sqrt_rn(exp_avg_sq) + eps, 1.0)
    return param - step_size * tl.div_rn(exp_avg, denom), (exp_avg, exp_avg_sq)
