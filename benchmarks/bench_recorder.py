"""What recording a ResNet-18's training costs: gradients' side under 1 % of a step, activations' side under 5 %.

Whole steps with and without a recorder take turns. Since the gradients' side is smaller than what shared machines
vary by, the optimizer's step alone is timed beside, with and without, and its difference set against a whole step.
"""

import pytest
import torch
from torch import nn

import gradops
from gradops.bench.interleave import interleave

IMAGE_SIDE = 64
LIMITS = {"gradients": 0.01, "activations": 0.05}


class Training:
    """A ResNet-18 on one batch of random images.

    Args:
        batch: images in it.
        record: None, "gradients" or "activations", which is both sides.
    """

    def __init__(self, batch, record):
        torchvision = pytest.importorskip("torchvision")
        torch.manual_seed(0)
        self.model = torchvision.models.resnet18()
        self.optimizer = gradops.AdamW(self.model.named_parameters(), lr=1e-3, max_norm=1.0)
        if record is not None:
            gradops.Recorder(self.optimizer, self.model if record == "activations" else None)
        self.images = torch.randn(batch, 3, IMAGE_SIDE, IMAGE_SIDE)
        self.labels = torch.randint(1000, (batch,))

    def train(self):
        loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        self.optimizer.zero_grad()
        self.optimizer.backward(loss)
        self.optimizer.step()


@pytest.mark.parametrize("batch", [32, 2])
def bench_recorder(benchmark, batch):
    runs = {str(record): Training(batch, record) for record in (None, "gradients", "activations")}
    whole = interleave({name: run.train for name, run in runs.items()}, budget=60.0, min_rounds=15)
    steps = interleave({name: runs[name].optimizer.step for name in ("None", "gradients")}, budget=10.0)
    step_seconds = whole["None"].median
    gradients = steps["gradients"].median - steps["None"].median
    shares = {
        "gradients": gradients / step_seconds,
        "activations": 1 / whole["activations"].times_faster_than(whole["gradients"]) - 1,
    }
    paired = {name: 1 / whole[name].times_faster_than(whole["None"]) - 1 for name in shares}
    benchmark.extra_info.update(
        case="recorder", batch=batch, seconds=step_seconds, gradients_seconds=gradients, shares=shares, paired=paired
    )
    print(f"batch {batch}: step {step_seconds * 1e3:.1f} ms, shares {shares}, whole steps in pairs {paired}")
    for side, share in shares.items():
        assert share < LIMITS[side], f"{side} take {share:.1%} of a step of {batch} images"
    benchmark.pedantic(runs["activations"].train, rounds=3)
