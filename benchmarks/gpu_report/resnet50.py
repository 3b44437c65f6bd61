"""A ResNet-50 written out, since the machines that the kit is for have no torchvision."""

from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 1000
DEPTHS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """He et al. 2015, figure 5, with the stride in the 3x3 convolution, as torchvision has it."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.extend([nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.relu(self.body(inputs) + self.shortcut(inputs), inplace=True)


def resnet50() -> nn.Sequential:
    """The parameters of torchvision's, in the same order."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks, inputs = [], 64
    for stage, depth in enumerate(DEPTHS):
        width = 64 * 2**stage
        for block in range(depth):
            blocks.append(Bottleneck(inputs, width, stride=2 if stage and not block else 1))
            inputs = 4 * width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def make_training(batch_size: int = 256, device: str = "cuda", side: int = 224) -> tuple[Any, Any, Any, Any]:
    """What `gradops profile` trains: model, optimizer, one batch of random images, and the loss."""
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
    model = resnet50().to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3, fused=True)
    images = torch.randn(batch_size, 3, side, side, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (batch_size,), device=device)
    return model, optimizer, [(images, labels)], nn.functional.cross_entropy


def make_rehearsal(batch_size: int = 2) -> tuple[Any, Any, Any, Any]:
    """The same, small and on the CPU."""
    return make_training(batch_size, "cpu", side=32)
