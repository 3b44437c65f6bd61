"""NAdam in Triton; see csrc/math/rules/nadam.h."""

import math
from collections.abc import Sequence

import triton
import triton.language as tl

from gradops.backends.triton.math import integer_power, lerp, lerp_coef

# Variants: + 1 where the gradient weighs more in the first moment than the old one does.
MOMENTS = ((0, 1), (0, 1))
COEFS = 6
LOG_OF_DECAY = tl.constexpr(math.log(0.96))


def variant_of(hyper: Sequence[float]) -> int:
    return int(hyper[0] <= 0.5)


@triton.jit
def momentum_of(hyper, step):
    beta1, momentum_decay = tl.load(hyper), tl.load(hyper + 3)
    # A plain constant would be float32.
    return beta1 * (1.0 - 0.5 * tl.exp(step * momentum_decay * tl.full([], LOG_OF_DECAY, tl.float64)))


@triton.jit
def next_scalar(hyper, step, scalar):
    """The product of all momentum up to this step, rounded as torch rounds it."""
    return scalar * momentum_of(hyper, step).to(tl.float32)


@triton.jit
def coefficients(hyper, lr, step, scalar):
    beta1, beta2, eps = tl.load(hyper), tl.load(hyper + 1), tl.load(hyper + 2)
    momentum, following = momentum_of(hyper, step), momentum_of(hyper, step + 1.0)
    product = next_scalar(hyper, step, scalar.to(tl.float32)).to(tl.float64)
    root = tl.sqrt(1.0 - integer_power(beta2, step))
    grad_size = lr * root * (1.0 - momentum) / (1.0 - product)
    exp_avg_size = lr * root * following / (1.0 - product * following)
    return lerp_coef(beta1), beta2, 1.0 - beta2, eps * root, grad_size, exp_avg_size


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    exp_avg_coef, beta2, one_minus_beta2, eps, grad_size, exp_avg_size = coefs
    exp_avg = lerp(moments[0], grad, exp_avg_coef, VARIANT == 1)
    exp_avg_sq = moments[1] * beta2 + one_minus_beta2 * grad * grad
    step = grad_size * grad + exp_avg_size * exp_avg
    return param - tl.div_rn(step, tl.sqrt_rn(exp_avg_sq) + eps), (exp_avg, exp_avg_sq)
