"""RMSprop, centered or not, with and without momentum, in torch's own operations; see csrc/math/rules/rmsprop.h."""

from torch import Tensor

from gradops.backends.torch.math import of_each


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Tensor]:
    """Of each of a group's parameters its rate, 0-d, in its arithmetic's dtype."""
    return [rate for (rate,) in of_each(params, [lr])]


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    alpha, eps, momentum, centered = hyper
    # In this order, or the square of a huge gradient overflows.
    variance = square = grad.mul(1.0 - alpha).mul_(grad).add_(moments[0], alpha=alpha)
    average, buffer = [], []
    if centered:
        average = [grad.sub(moments[-1]).mul_(1.0 - alpha).add_(moments[-1])]
        variance = square.sub(average[0].square()).clamp_(min=0.0)
    direction = grad.div(variance.sqrt().add_(eps))
    if momentum > 0:
        direction.add_(moments[1], alpha=momentum)
        buffer = [direction]
    return weight.sub(direction.mul(coefs)), [square, *buffer, *average]
