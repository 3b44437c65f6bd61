"""How much of the input is left from layer to layer, by initialisation."""

import pathlib
from typing import Any

import torch
from torch import Tensor, nn

import gradops
from docs.figures.style import LOOKS, label, new_figure, save
from docs.figures.trainings import SEED

LAYERS, BLOCKS, CHANNELS = 24, 24, 32


class Block(nn.Module):
    """`relu(x + norm(conv(relu(norm(conv(x))))))`, the norms optional."""

    def __init__(self, normalise: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2 = (nn.BatchNorm2d(CHANNELS) if normalise else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


def draw(path: pathlib.Path) -> dict[str, Any]:
    """Plain layers on the left, residual blocks on the right."""
    figure, (plain, residual) = new_figure(9.6, 3.8, 2, sharey=True)
    facts = {
        "layers": _lines(
            plain,
            {"torch's default": (_layers(), None), "init_cnn_": (_layers(), True)},
        ),
        "blocks": _lines(
            residual,
            {
                "no norm, init_cnn_": (_blocks(False), True),
                "BatchNorm, init_cnn_": (_blocks(True), True),
                "BatchNorm, zero_last_bn=False": (_blocks(True), False),
                "no norm, torch's default": (_blocks(False), None),
            },
        ),
    }
    label(plain, f"spread of activations over the inputs, {LAYERS} convolutions", "layer")
    label(residual, f"the same, {BLOCKS} residual blocks", "block")
    save(figure, path)
    return facts


def _layers() -> list[nn.Module]:
    return [nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU()) for _ in range(LAYERS)]


def _blocks(normalise: bool) -> list[nn.Module]:
    return [Block(normalise) for _ in range(BLOCKS)]


@torch.no_grad()
def _lines(axes: Any, models: dict[str, tuple[list[nn.Module], bool | None]]) -> dict[str, float]:
    """Standard deviation over the inputs, averaged: biases alone would keep the activations' size up."""
    facts = {}
    for (name, (parts, zero_last_bn)), look in zip(models.items(), LOOKS, strict=False):
        torch.manual_seed(SEED)
        if zero_last_bn is not None:
            gradops.init_cnn_(nn.Sequential(*parts, nn.ReLU()), zero_last_bn=zero_last_bn)
        x = torch.randn(16, CHANNELS, 16, 16)
        sizes = []
        for part in parts:
            x = part(x)
            sizes.append(float(x.double().std(dim=0).mean()))
        axes.plot(range(1, len(sizes) + 1), sizes, label=name, **{**look, "markersize": 4})
        facts[name] = float(f"{sizes[-1]:.2g}")
    axes.set_yscale("log")
    axes.legend(frameon=False)
    return facts
