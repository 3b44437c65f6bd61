"""How much the gradient of one batch differs from the next one's, by batch size."""

import pathlib
from typing import Any

import torch

from docs.figures.style import LOOKS, label, new_figure, save
from docs.figures.trainings import SEED, gradient, task
from gradops.demo.network import ResidualNet

SIZES = (4, 8, 16, 32, 64, 128, 256)
BATCHES = 16
WARM_UP = 20


def draw(path: pathlib.Path) -> dict[str, Any]:
    """The scatter of the gradient over 16 batches, relative to its mean, for a network that has begun to learn."""
    figure, (axes,) = new_figure(6.4, 3.6)
    facts = {}
    for (name, network), look in zip(_networks().items(), LOOKS, strict=False):
        scatter = [_scatter(network, size) for size in SIZES]
        facts[name] = {str(size): round(value, 2) for size, value in zip(SIZES, scatter, strict=True)}
        axes.plot(SIZES, scatter, label=name, **look)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(SIZES, [str(size) for size in SIZES])
    axes.set_yticks([0.5, 1, 2, 4], ["0.5", "1", "2", "4"])
    axes.axhline(1, color="#888888", linewidth=1, linestyle=":")
    label(axes, "scatter of a batch's gradient, over the size of the mean gradient", "batch size")
    axes.legend(frameon=False)
    save(figure, path)
    return facts


def _networks() -> dict[str, ResidualNet]:
    """Twenty steps into training: at the very beginning all gradients say the same, how often each label occurs."""
    networks = {}
    for name, blocks, normalise in (("12 blocks, not normalised", 12, False), ("6 blocks, BatchNorm", 6, True)):
        torch.manual_seed(SEED)
        network = networks[name] = ResidualNet(blocks, normalise)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for index in torch.arange(WARM_UP * 64).split(64):
            for param, grad in zip(network.parameters(), gradient(network, task(0.01).train.batch(index)), strict=True):
                param.grad = grad
            optimizer.step()
    return networks


def _scatter(network: ResidualNet, size: int) -> float:
    drawn = torch.Generator().manual_seed(SEED)
    train = task(0.01).train
    batches = [torch.randint(len(train), (size,), generator=drawn) for _ in range(BATCHES)]
    grads = torch.stack([torch.cat([g.flatten() for g in gradient(network, train.batch(index))]) for index in batches])
    scatter = grads.var(dim=0).sum()
    # The mean of n batches carries a share of 1/n of the scatter itself.
    mean = (grads.mean(dim=0).square().sum() - scatter / BATCHES).clamp_min(0)
    return float((scatter / mean).sqrt())
