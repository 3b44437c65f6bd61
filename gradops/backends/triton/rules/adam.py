"""Adam, AMSGrad and AdamW in Triton; see csrc/math/rules/adam.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

from gradops.backends.triton.math import integer_power, lerp, lerp_coef

# Variants: + 1 for AMSGrad, + 2 where the gradient weighs more in the first moment than the old one does.
MOMENTS = ((0, 1), (0, 1, 2), (0, 1), (0, 1, 2))
COEFS = 6


def variant_of(hyper: Sequence[float]) -> int:
    beta1, _, _, amsgrad = hyper
    return int(amsgrad) + 2 * (beta1 <= 0.5)


@triton.jit
def coefficients(hyper, lr, step):
    beta1, beta2, eps = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    step_size = lr / (1.0 - integer_power(beta1, step))
    inv_bias_correction2_sqrt = 1.0 / tl.sqrt(1.0 - integer_power(beta2, step))
    return lerp_coef(beta1), beta2, 1.0 - beta2, eps, step_size, inv_bias_correction2_sqrt


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    exp_avg_coef, beta2, one_minus_beta2, eps, step_size, inv_bias_correction2_sqrt = coefs
    exp_avg = lerp(moments[0], grad, exp_avg_coef, VARIANT >= 2)
    exp_avg_sq = moments[1] * beta2 + one_minus_beta2 * grad * grad
    second_moment = exp_avg_sq
    new_moments = (exp_avg, exp_avg_sq)
    if VARIANT % 2 == 1:
        second_moment = tl.where(moments[2] > exp_avg_sq, moments[2], exp_avg_sq)
        new_moments = (exp_avg, exp_avg_sq, second_moment)
    denom = tl.sqrt_rn(second_moment) * inv_bias_correction2_sqrt + eps
    return param - step_size * tl.div_rn(exp_avg, denom), new_moments
