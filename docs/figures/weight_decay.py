"""What L2 in the gradient and decoupled decay leave of the weights, tensor by tensor."""

import pathlib
from typing import Any

import torch

from docs.figures.style import LOOKS, label, new_figure, save
from docs.figures.trainings import SEED, task, trained
from gradops.demo.network import ResidualNet
from gradops.demo.training import accuracy

LR = 0.01
OPTIMIZERS = {
    "AdamW, weight_decay 0.3 (decoupled)": (torch.optim.AdamW, 0.3),
    "Adam, weight_decay 0.001 (L2)": (torch.optim.Adam, 0.001),
    "AdamW, weight_decay 0": (torch.optim.AdamW, 0.0),
}


def draw(path: pathlib.Path) -> dict[str, Any]:
    """RMS of each convolution's weights at the end of the same run."""
    figure, (axes,) = new_figure(8.4, 3.8)
    facts = {}
    for (name, (kind, decay)), look in zip(OPTIMIZERS.items(), LOOKS, strict=False):
        torch.manual_seed(SEED)
        network = ResidualNet(blocks=6, normalise=True)
        losses = list(trained(network, kind(network.parameters(), weight_decay=decay), task(LR)))
        sizes = {n: float(p.square().mean().sqrt()) for n, p in network.named_parameters() if p.dim() > 1}
        axes.plot(list(sizes), list(sizes.values()), label=name, **look)
        facts[name] = {
            "loss of the last 10 steps": round(sum(losses[-10:]) / 10, 4),
            "held-out labels right": round(accuracy(task(LR), network), 4),
            "smallest and largest RMS": [round(min(sizes.values()), 4), round(max(sizes.values()), 4)],
        }
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", labelrotation=90, labelsize=8)
    label(axes, "RMS of the weights after 320 steps", "")
    axes.legend(frameon=False)
    save(figure, path)
    return facts
