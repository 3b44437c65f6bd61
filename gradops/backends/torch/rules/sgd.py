"""SGD, with momentum and Nesterov's, in torch's own operations; see csrc/math/rules/sgd.h."""

from dataclasses import dataclass

from torch import Tensor

from gradops.backends.torch.math import of_each


@dataclass(slots=True)
class Coefs:
    """What a parameter's update takes besides `hyper`; 0-d, in its arithmetic's dtype."""

    lr: Tensor
    kept: Tensor  # of the buffer: momentum, 0 at the first update
    added: Tensor  # of the gradient: 1 - dampening, 1 at the first update


def coefs(params: list[Tensor], hyper: list[float], lr: Tensor, step: Tensor) -> list[Coefs]:
    """Of each of a group's parameters."""
    momentum, dampening, _ = hyper
    later = (step > 1.0).to(lr.dtype)
    columns = [lr, momentum * later, 1.0 - dampening * later]
    return [Coefs(*numbers) for numbers in of_each(params, columns)]


def update(
    weight: Tensor, grad: Tensor, moments: list[Tensor], hyper: list[float], coefs: Coefs
) -> tuple[Tensor, list[Tensor]]:
    """The new weights and moments; nothing is written."""
    momentum, _, nesterov = hyper
    if not moments:
        return weight.sub(grad.mul(coefs.lr)), []
    buffer = moments[0].to(grad.dtype).mul(coefs.kept).add_(grad.mul(coefs.added))
    direction = grad.add(buffer, alpha=momentum) if nesterov else buffer
    return weight.sub(direction.mul(coefs.lr)), [buffer]
