"""Residual CNNs for 56x56 canvases: one without normalisation, which explodes, and one with BatchNorm."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradops.demo.digits import CANVAS_SIDE, CLASSES

REDUCTION = 8


class Convolution(nn.Conv2d):
    """A convolution that also does float16 autocast on CPUs without float16 arithmetic.

    Torch's fallback there takes 30 times as long as float32. This one stores inputs, weights and outputs, and the
    gradients of all three, as float16, but multiplies and sums in float32, which is what a GPU's tensor cores do.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not emulates_half():
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            bias = None if self.bias is None else self.bias.half().float()
            return self._conv_forward(x.half().float(), self.weight.half().float(), bias).half()


class ResidualBlock(nn.Module):
    """`x + conv(relu(conv(relu(x))))`, each convolution preceded by BatchNorm where `normalise` is set."""

    def __init__(self, channels: int, normalise: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels) if normalise else nn.Identity()
        self.conv1 = Convolution(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels) if normalise else nn.Identity()
        self.conv2 = Convolution(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1(torch.relu(self.norm1(x)))
        return x + self.conv2(torch.relu(self.norm2(branch)))


class ResidualNet(nn.Module):
    """Stem, two stages of residual blocks, and a head with one hidden layer of ReLU units.

    Args:
        blocks: number of residual blocks, half of them in each stage.
        normalise: put BatchNorm in the blocks; without it and with 12 blocks a large learning rate explodes.
        width: channels of the first stage; the second has twice as many.
        units: ReLU units in the head.
    """

    def __init__(self, blocks: int = 12, normalise: bool = False, width: int = 16, units: int = 128) -> None:
        super().__init__()
        self.stem = Convolution(1, width, 5, stride=2, padding=2)
        self.stage1 = nn.Sequential(*(ResidualBlock(width, normalise) for _ in range(blocks // 2)))
        self.widen = Convolution(width, 2 * width, 3, stride=2, padding=1)
        self.stage2 = nn.Sequential(*(ResidualBlock(2 * width, normalise) for _ in range(blocks // 2)))
        self.head = nn.Linear(2 * width * (CANVAS_SIDE // REDUCTION) ** 2, units)
        self.labels = nn.Linear(units, CLASSES)

    def hidden_units(self, canvases: Tensor) -> Tensor:
        """The head's units (b, units) after their ReLU, for canvases (b, 1, 56, 56)."""
        x = F.max_pool2d(torch.relu(self.stem(canvases)), 2)
        x = self.stage2(torch.relu(self.widen(self.stage1(x))))
        return torch.relu(self.head(torch.relu(x).flatten(1)))

    def forward(self, canvases: Tensor) -> Tensor:
        """Logits (b, 10) of canvases (b, 1, 56, 56)."""
        return self.labels(self.hidden_units(canvases))


def emulates_half() -> bool:
    """Whether convolutions run in float16 autocast on a CPU that has no float16 arithmetic."""
    if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") is not torch.float16:
        return False
    return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
