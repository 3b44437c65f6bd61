"""Small real trainings on handwritten digits, each with one known fault or with none, for the diagnosis to look at."""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradops
from gradops.demo.digits import load_digits
from gradops.record.run import Run

SIDE = 14
Batch = tuple[Tensor, Tensor]


@functools.cache
def digits() -> Batch:
    """4,000 digits of 14x14 pixels, standardised, and their classes."""
    train, _ = load_digits()
    images = F.avg_pool2d(torch.from_numpy(train.images).float().unsqueeze(1), 2)
    return (images - images.mean()) / images.std(), torch.from_numpy(train.classes)


class Residual(nn.Module):
    """`x + fc2(relu(fc1(norm(x))))`, with normalisation or without."""

    def __init__(self, width: int, normalise: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if normalise else nn.Identity()
        self.fc1 = nn.Linear(width, width)
        self.relu = nn.ReLU()
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.relu(self.fc1(self.norm(x))))


def residual(blocks: int, normalise: bool, width: int = 32) -> nn.Module:
    body = [Residual(width, normalise) for _ in range(blocks)]
    return nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, width), *body, nn.Linear(width, 10))


def mlp(*widths: int) -> nn.Module:
    sizes = (SIDE * SIDE, *widths)
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(sizes[-1], 10))


def cnn(normalise: bool = False, channels: int = 8) -> nn.Module:
    layers: list[nn.Module] = []
    for inputs, stride in ((1, 2), (channels, 1), (channels, 1)):
        layers += [
            nn.Conv2d(inputs, channels, 3, stride, padding=1),
            *[nn.BatchNorm2d(channels)] * normalise,
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(49 * channels, 32), nn.ReLU(), nn.Linear(32, 10))


def initialised(network: nn.Module, std: float | None = None) -> nn.Module:
    """Kaiming's initialisation, or the mistake of one standard deviation whatever the number of inputs."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if std is None:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    return network


def loud(network: nn.Module, layer: str) -> nn.Module:
    """Makes one layer's outputs nearly as large as float16 goes; a LayerNorm after it brings them back."""
    with torch.no_grad():
        network.get_submodule(layer).weight.mul_(4e4)
    return network


def with_layer_norm() -> nn.Module:
    quiet = [nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.ReLU()]
    return nn.Sequential(*quiet, nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10))


@dataclass(frozen=True)
class Training:
    """How one run is made; `spoil` changes network or batch before a step: (step, network, batch) to batch."""

    make: Callable[[], nn.Module]
    lr: float = 3e-3
    seed: int = 0
    steps: int = 90
    batch_size: int = 32
    precision: torch.dtype | None = None
    constant_lr: bool = False
    loss_factor: float = 1.0
    spoil: Callable[[int, nn.Module, Batch], Batch] = lambda step, network, batch: batch
    options: dict[str, Any] = field(default_factory=dict)


@functools.cache
def recorded(name: str) -> Run:
    """The run of one of `FAULTY`, `HEALTHY` or `NOTED`, trained once a process."""
    return record({**FAULTY, **HEALTHY, **NOTED}[name])


def record(training: Training) -> Run:
    torch.manual_seed(training.seed)
    network = training.make()
    optimizer = gradops.AdamW(network.named_parameters(), lr=training.lr, **training.options)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, training.lr, total_steps=training.steps)
    images, classes = digits()
    with gradops.Recorder(optimizer, network) as recorder:
        for step in range(training.steps):
            index = torch.randint(len(images), (training.batch_size,))
            inputs, targets = training.spoil(step, network, (images[index], classes[index]))
            with torch.autocast("cpu", dtype=training.precision, enabled=training.precision is not None):
                logits = network(inputs)
            loss = training.loss_factor * F.cross_entropy(logits.float(), targets)
            optimizer.zero_grad()
            optimizer.backward(loss)
            optimizer.step()
            if not training.constant_lr:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=r".*lr_scheduler.step\(\)")
                    schedule.step()
    return recorder.run()


def scaled_inputs(factor: float, at: int | None = None) -> Callable[[int, nn.Module, Batch], Batch]:
    return lambda step, network, batch: (batch[0] * factor, batch[1]) if at in (None, step) else batch


def wrong_labels(at: int) -> Callable[[int, nn.Module, Batch], Batch]:
    return lambda step, network, batch: (batch[0], (batch[1] + 5) % 10) if step == at else batch


def killed(layer: str, at: int) -> Callable[[int, nn.Module, Batch], Batch]:
    def spoil(step: int, network: nn.Module, batch: Batch) -> Batch:
        if step == at:
            network.get_submodule(layer).bias.data.fill_(-1e3)
        return batch

    return spoil


FP16: dict[str, Any] = {"precision": torch.float16, "options": {"loss_scale": "dynamic"}}
HIGH_FLOOR = {"loss_scale": gradops.DynamicLossScale(min_scale=2.0**16)}
FAULTY = {
    "high lr": Training(cnn, lr=0.3),
    "high lr, residual": Training(lambda: residual(6, False), lr=0.3),
    "high lr, clipped": Training(lambda: residual(6, False), lr=0.3, seed=1, options={"max_norm": 1.0}),
    "bad init": Training(lambda: initialised(cnn(), std=1.0), steps=60),
    "bad init, perceptron": Training(lambda: initialised(mlp(64, 64, 64, 64), std=1.0), steps=60, lr=1e-3),
    "bad init, fading": Training(lambda: initialised(mlp(32, 32, 32, 32, 32, 32), std=0.01), lr=1e-3),
    "no normalisation": Training(lambda: initialised(residual(14, False)), lr=1e-3, steps=60),
    "float16 overflow": Training(lambda: loud(with_layer_norm(), "3"), **FP16),
    "corrupt batch": Training(cnn, spoil=scaled_inputs(1e3, at=60)),
    "corrupt batch, NaN": Training(cnn, spoil=scaled_inputs(float("nan"), at=60)),
    "corrupt batch, labels": Training(lambda: mlp(64), steps=200, batch_size=64, spoil=wrong_labels(150)),
    "dead layer": Training(cnn, spoil=killed("2", 50)),
    "dead layer, from the start": Training(cnn, spoil=killed("4", 0), steps=60),
    "scale at floor": Training(lambda: mlp(64), loss_factor=1e3, precision=torch.float16, options=HIGH_FLOOR),
}
HEALTHY = {
    "cnn": Training(cnn),
    "cnn, BatchNorm": Training(lambda: cnn(normalise=True), lr=1e-2, seed=1),
    "cnn, bfloat16": Training(cnn, seed=2, precision=torch.bfloat16),
    "cnn, clipped": Training(lambda: cnn(channels=12), seed=3, options={"max_norm": 5.0}),
    "perceptron": Training(lambda: mlp(64, 64), seed=4, lr=1e-3),
    "perceptron, deep": Training(lambda: initialised(mlp(48, 48, 48, 48, 48)), seed=5, lr=2e-3),
    "perceptron, long": Training(lambda: mlp(128), seed=6, steps=500, lr=3e-3),
    "linear": Training(mlp, seed=7, lr=1e-2, steps=200),
    "float16": Training(lambda: mlp(64, 64), seed=8, **FP16),
    "float16, scale search": Training(
        lambda: mlp(64),
        seed=9,
        precision=torch.float16,
        options={"loss_scale": gradops.DynamicLossScale(init_scale=2.0**24)},
    ),
    "residual, LayerNorm": Training(lambda: residual(6, True), seed=10),
    "residual": Training(lambda: residual(6, False), seed=11, lr=1e-3),
    "residual, capped": Training(lambda: residual(6, False), seed=12, lr=0.3, options={"max_relative_step": 0.05}),
}
NOTED = {
    "clipping binds": Training(lambda: mlp(64), options={"max_norm": 0.05}),
    "large inputs": Training(cnn, spoil=lambda step, network, batch: (80 * batch[0] + 40, batch[1])),
}
