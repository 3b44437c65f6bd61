"""What recording a ResNet-18's training costs: gradients' side under 1 % of a step, activations' side under 5 %, on
batches of 16; on batches of 2, where a step has little else to do, it is printed and not limited.

Each side is timed where it is at work, with and without in turns: the gradients' side in the optimizer's step, the
activations' side in the forward pass; the difference is set against a whole step. Whole steps are compared, too. Times
are the process's own, of all its threads, since a shared machine's pauses are larger than what is looked for.
"""

import time

import pytest
import torch
from torch import nn

import gradops
from gradops.bench.interleave import in_turns

IMAGE_SIDE = 64
LIMITS = {"gradients": 0.01, "activations": 0.05}
ROUNDS = {"step": 100, "forward": 15, "train": 9}


class Training:
    """A ResNet-18 on one batch of random images, which can be recorded and left alone."""

    def __init__(self, batch):
        torchvision = pytest.importorskip("torchvision")
        torch.manual_seed(0)
        self.model = torchvision.models.resnet18()
        self.optimizer = gradops.AdamW(self.model.named_parameters(), lr=1e-3, max_norm=1.0)
        self.recorder = gradops.Recorder(self.optimizer, self.model)
        self.images = torch.randn(batch, 3, IMAGE_SIDE, IMAGE_SIDE)
        self.labels = torch.randint(1000, (batch,))

    def record(self, recorded):
        self.optimizer.engine.watchers = (self.recorder,) if recorded else ()
        self.optimizer.track_updates = recorded

    def step(self):
        self.optimizer.step()

    def forward(self):
        return self.model(self.images)

    def train(self):
        loss = nn.functional.cross_entropy(self.forward(), self.labels)
        self.optimizer.zero_grad()
        self.optimizer.backward(loss)
        self.optimizer.step()

    def seconds(self, what, recorded):
        """Of one call, recorded or not."""
        self.record(recorded)
        self.recorder._watch.on = recorded
        start = time.process_time()
        getattr(self, what)()
        return time.process_time() - start


def measure(run, what):
    """Seconds of one call without recording, and what recording adds, by the median of the rounds' ratios."""
    run.seconds(what, True)
    clock = {"with": True, "without": False}
    samples = in_turns(clock, lambda name: run.seconds(what, clock[name]), ROUNDS[what])
    without = samples["without"].median
    return without, without * (1 / samples["with"].times_faster_than(samples["without"]) - 1)


@pytest.mark.parametrize("batch", [16, 2])
def bench_recorder(benchmark, batch):
    run = Training(batch)
    whole, both = measure(run, "train")
    added = {"gradients": measure(run, "step")[1], "activations": measure(run, "forward")[1]}
    shares = {side: seconds / whole for side, seconds in added.items()}
    benchmark.extra_info.update(case="recorder", batch=batch, seconds=whole, added=added, shares=shares, whole=both)
    print(f"\nbatch {batch}: step {whole * 1e3:.1f} ms, recording adds {both / whole:.2%} by whole steps;", end=" ")
    print("; ".join(f"{side} {added[side] * 1e3:.3f} ms, {share:.2%}" for side, share in shares.items()))
    for side, share in shares.items():
        assert batch < 16 or share < LIMITS[side], f"{side} take {share:.1%} of a step of {batch} images"
    benchmark.pedantic(run.train, rounds=3)
