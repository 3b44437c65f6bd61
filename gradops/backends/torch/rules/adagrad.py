"""Adagrad in torch's own operations; see csrc/math/rules/adagrad.h."""

from torch import Tensor

from gradops.backends.torch.math import of_each


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Tensor]:
    """Of each of a group's parameters its decayed rate, 0-d, in its arithmetic's dtype."""
    lr_decay, _ = hyper
    return [rate for (rate,) in of_each(params, [lr / ((step - 1.0) * lr_decay + 1.0)])]


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    _, eps = hyper
    total = grad.square().add_(moments[0])
    return weight.sub(grad.div(total.sqrt().add_(eps)).mul_(coefs)), [total]
