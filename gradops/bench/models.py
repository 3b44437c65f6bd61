"""Parameter shapes of networks; those of well-known ones are lists here, in torchvision's order.

What an optimizer step costs depends on the shapes alone, so that the lists stand in for the models.
"""

import math
import re
from collections.abc import Callable, Iterator

import torch

from gradops.bench.zoo import make_model

Shape = tuple[int, ...]


def _conv_bn(outputs: int, inputs: int, kernel: int) -> Iterator[Shape]:
    yield (outputs, inputs, kernel, kernel)
    yield from [(outputs,)] * 2


def _linear(outputs: int, inputs: int) -> Iterator[Shape]:
    yield from [(outputs, inputs), (outputs,)]


def _resnet(depths: list[int], bottleneck: bool) -> Iterator[Shape]:
    """He et al. 2015, "Deep Residual Learning for Image Recognition", table 1."""
    yield from _conv_bn(64, 3, 7)
    inputs, expansion = 64, 4 if bottleneck else 1
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            kernels = [(width, inputs, 1), (width, width, 3), (width * 4, width, 1)]
            for outputs, channels, kernel in kernels if bottleneck else [(width, inputs, 3), (width, width, 3)]:
                yield from _conv_bn(outputs, channels, kernel)
            if block == 0 and inputs != width * expansion:
                yield from _conv_bn(width * expansion, inputs, 1)
            inputs = width * expansion
    yield from _linear(1000, inputs)


def _efficientnet_b0() -> Iterator[Shape]:
    """Tan and Le 2019, "EfficientNet", table 1; squeeze-and-excitation at a quarter of a block's input."""
    yield from _conv_bn(32, 3, 3)
    inputs = 32
    stages = [
        (1, 3, 16, 1),
        (6, 3, 24, 2),
        (6, 5, 40, 2),
        (6, 3, 80, 3),
        (6, 5, 112, 3),
        (6, 5, 192, 4),
        (6, 3, 320, 1),
    ]
    for expand, kernel, outputs, depth in stages:
        for _ in range(depth):
            hidden, squeezed = inputs * expand, inputs // 4
            if expand > 1:
                yield from _conv_bn(hidden, inputs, 1)
            yield from _conv_bn(hidden, 1, kernel)
            yield from [(squeezed, hidden, 1, 1), (squeezed,), (hidden, squeezed, 1, 1), (hidden,)]
            yield from _conv_bn(outputs, hidden, 1)
            inputs = outputs
    yield from _conv_bn(1280, inputs, 1)
    yield from _linear(1000, 1280)


def _convnext_tiny() -> Iterator[Shape]:
    """Liu et al. 2022, "A ConvNet for the 2020s", ConvNeXt-T."""
    widths, depths = [96, 192, 384, 768], [3, 3, 9, 3]
    inputs = 3
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        patch = 4 if stage == 0 else 2
        convolution: list[Shape] = [(width, inputs, patch, patch), (width,)]
        norm: list[Shape] = [(width if stage == 0 else inputs,)] * 2
        yield from convolution + norm if stage == 0 else norm + convolution
        for _ in range(depth):
            yield from [(width, 1, 1), (width, 1, 7, 7), (width,), (width,), (width,)]
            yield from _linear(4 * width, width)
            yield from _linear(width, 4 * width)
        inputs = width
    yield from [(inputs,)] * 2
    yield from _linear(1000, inputs)


def _vit_b_16() -> Iterator[Shape]:
    """Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", ViT-Base with patches of 16."""
    width = 768
    yield from [(1, 1, width), (width, 3, 16, 16), (width,), (1, 197, width)]
    for _ in range(12):
        yield from [(width,)] * 2
        yield from _linear(3 * width, width)
        yield from _linear(width, width)
        yield from [(width,)] * 2
        yield from _linear(4 * width, width)
        yield from _linear(width, 4 * width)
    yield from [(width,)] * 2
    yield from _linear(1000, width)


MODELS: dict[str, Callable[[], Iterator[Shape]]] = {
    "resnet18": lambda: _resnet([2, 2, 2, 2], bottleneck=False),
    "resnet50": lambda: _resnet([3, 4, 6, 3], bottleneck=True),
    "resnet152": lambda: _resnet([3, 8, 36, 3], bottleneck=True),
    "efficientnet_b0": _efficientnet_b0,
    "convnext_tiny": _convnext_tiny,
    "vit_b_16": _vit_b_16,
}

# What torchvision's models have, (parameters, tensors), so that a slip in a list above cannot go unnoticed.
KNOWN = {
    "resnet18": (11_689_512, 62),
    "resnet50": (25_557_032, 161),
    "resnet152": (60_192_808, 467),
    "efficientnet_b0": (5_288_548, 213),
    "convnext_tiny": (28_589_128, 182),
    "vit_b_16": (86_567_656, 152),
}


# Other names that people know these networks by.
ALIASES = {"vit_base": "vit_b_16", "vit_base_patch16_224": "vit_b_16"}

_SAME_TENSORS = re.compile(r"(\d+)x(\d+)")


def shapes(name: str) -> list[Shape]:
    """Parameter shapes of what `--model` names.

    Args:
        name: a network of `MODELS` or `ALIASES`; "NxM" for N tensors of M elements; "path.py:function" for a function
            that returns a model; else a network of torchvision or timm.

    Raises:
        ValueError: if a list does not have the counts of the model it stands for.
        ModelError: nothing of that name can be found or made.
    """
    name = ALIASES.get(name, name)
    if same := _SAME_TENSORS.fullmatch(name):
        return [(int(same[2]),)] * int(same[1])
    if name not in MODELS:
        with torch.device("meta"):
            return [tuple(param.shape) for param in make_model(name).parameters()]
    found = list(MODELS[name]())
    counts = (sum(map(math.prod, found)), len(found))
    if counts != KNOWN[name]:
        raise ValueError(f"{name} must have {KNOWN[name]} (parameters, tensors), its shape list has {counts}")
    return found
