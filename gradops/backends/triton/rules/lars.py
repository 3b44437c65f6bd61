"""LARS in Triton: SGD's update of a gradient times its trust ratio; see csrc/math/rules/lars.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

from gradops.backends.triton.rules import sgd
from gradops.backends.triton.rules.sgd import coefficients as sgd_coefficients
from gradops.backends.triton.rules.sgd import element as sgd_element

MOMENTS = sgd.MOMENTS
COEFS = sgd.COEFS + 1
_OF_SGD = tl.constexpr(3)  # the first of `hyper`


def variant_of(hyper: Sequence[float]) -> int:
    return sgd.variant_of(hyper[: _OF_SGD.value])


@triton.jit
def grad_factor(hyper, weight_decay, lr, weight_norm, grad_norm):
    """The trust ratio."""
    trust_coeff, eps = tl.load(hyper + _OF_SGD), tl.load(hyper + _OF_SGD + 1)
    trust_clip, always_adapt = tl.load(hyper + _OF_SGD + 2) != 0, tl.load(hyper + _OF_SGD + 3) != 0
    adapts = always_adapt | (weight_decay != 0)
    both = (weight_norm > 0) & (grad_norm > 0)
    ratio = trust_coeff * weight_norm / tl.where(both, grad_norm + weight_decay * weight_norm + eps, 1.0)
    ratio = tl.where(both, ratio, 1.0)
    ratio = tl.where(trust_clip, tl.where(ratio < lr, ratio / tl.where(ratio < lr, lr, 1.0), 1.0), ratio)
    return tl.where(adapts, ratio, 1.0)


@triton.jit
def coefficients(hyper, lr, step, ratio):
    lr, momentum, kept, added = sgd_coefficients(hyper, lr, step)
    return lr, momentum, kept, added, ratio


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    lr, momentum, kept, added, ratio = coefs
    return sgd_element(param, ratio * grad, moments, (lr, momentum, kept, added), VARIANT)
