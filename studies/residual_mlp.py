"""A residual network of linear layers for single digits: cheap enough for many seeds, and it explodes as CNNs do."""

import torch
from torch import Tensor, nn

from gradops.demo.digits import CLASSES, DIGIT_SIDE


class ResidualMLP(nn.Module):
    """Blocks of `x + linear(relu(linear(relu(x))))` between an embedding and a head with one layer of ReLU units.

    Args:
        blocks: number of residual blocks.
        normalise: put BatchNorm before each ReLU of the blocks.
        width: features of the blocks.
        units: ReLU units in the head.
    """

    def __init__(self, blocks: int, normalise: bool, width: int = 64, units: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(DIGIT_SIDE**2, width)
        self.blocks = nn.ModuleList(nn.Sequential(*self._block(width, normalise)) for _ in range(blocks))
        self.head = nn.Linear(width, units)
        self.labels = nn.Linear(units, CLASSES)

    @staticmethod
    def _block(width: int, normalise: bool) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.BatchNorm1d(width)] if normalise else []
            layers += [nn.ReLU(), nn.Linear(width, width)]
        return layers

    def hidden_units(self, digits: Tensor) -> Tensor:
        """The head's units (b, units) after their ReLU, for digits (b, 1, 28, 28)."""
        x = self.stem(digits.flatten(1))
        for block in self.blocks:
            x = x + block(x)
        return torch.relu(self.head(torch.relu(x)))

    def forward(self, digits: Tensor) -> Tensor:
        """Logits (b, 10) of digits (b, 1, 28, 28)."""
        return self.labels(self.hidden_units(digits))
