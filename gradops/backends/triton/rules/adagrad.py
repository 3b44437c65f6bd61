"""Adagrad in Triton; see csrc/math/rules/adagrad.h."""

from collections.abc import Sequence

import triton
import triton.language as tl

MOMENTS = ((0,),)
COEFS = 2


def variant_of(hyper: Sequence[float]) -> int:
    return 0


@triton.jit
def coefficients(hyper, lr, step):
    lr_decay, eps = tl.load(hyper), tl.load(hyper + 1)
    return lr / (1.0 + (step - 1.0) * lr_decay), eps


@triton.jit
def element(param, grad, moments, coefs, VARIANT: tl.constexpr):
    decayed_lr, eps = coefs
    total = moments[0] + grad * grad
    return param - decayed_lr * tl.div_rn(grad, tl.sqrt_rn(total) + eps), (total,)
