"""What clipping by norm and clipping by value do to the direction of one real gradient."""

import pathlib
from typing import Any

import torch

from docs.figures.style import LOOKS, label, new_figure, save
from docs.figures.trainings import SEED, gradient, task
from gradops.demo.network import ResidualNet

SHARES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01)


def draw(path: pathlib.Path) -> dict[str, Any]:
    """The angle between the gradient and its clipped self, over what is left of its norm."""
    torch.manual_seed(SEED)
    network = ResidualNet()
    grad = torch.cat([g.flatten() for g in gradient(network, task(0.01).train.batch(torch.arange(64)))]).double()
    by_value = [_angle(grad, _clamped(grad, share)) for share in SHARES]
    figure, (axes,) = new_figure(6.4, 3.4)
    axes.plot(SHARES, by_value, label="clip_value: each element on its own", **LOOKS[0])
    axes.plot(SHARES, [_angle(grad, share * grad) for share in SHARES], label="max_norm: all by one factor", **LOOKS[1])
    axes.set_xscale("log")
    axes.set_xticks(SHARES[::2], [f"{share:g}" for share in SHARES[::2]])
    axes.invert_xaxis()
    label(axes, "angle between the gradient and what clipping leaves", "norm that is left, of the whole", "degrees")
    axes.legend(frameon=False)
    save(figure, path)
    return {"angle by value": {str(s): round(a, 1) for s, a in zip(SHARES, by_value, strict=True)}}


def _clamped(grad: torch.Tensor, share: float) -> torch.Tensor:
    """Clamped to the value that leaves this share of the norm, found by bisection."""
    low, high = 0.0, float(grad.abs().max())
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if grad.clamp(-middle, middle).norm() < share * grad.norm() else (low, middle)
    return grad.clamp(-high, high)


def _angle(first: torch.Tensor, second: torch.Tensor) -> float:
    cosine = first @ second / (first.norm() * second.norm())
    return float(torch.rad2deg(torch.acos(cosine.clamp(-1, 1))))
