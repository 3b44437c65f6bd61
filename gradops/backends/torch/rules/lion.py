"""Lion in torch's own operations; see csrc/math/rules/lion.h."""

from torch import Tensor

from gradops.backends.torch.math import of_each


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Tensor]:
    """Of each of a group's parameters the rate; 0-d, in its arithmetic's dtype."""
    return [rate for (rate,) in of_each(params, [lr])]


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], lr: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    beta1, beta2 = hyper
    exp_avg = moments[0].to(grad.dtype)
    direction = grad.mul(1.0 - beta1).add_(exp_avg.mul(beta1)).sign_()
    return weight.sub(direction.mul_(lr)), [grad.mul(1.0 - beta2).add_(exp_avg.mul(beta2))]
