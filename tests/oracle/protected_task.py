"""A network whose buffers change in every way that forwards change them, and its training around a bad batch."""

import math

import torch
from torch import nn

import gradops
from gradops import SpikeGuard

BAD = 2  # the number of the batch that the other run never sees


class Buffers(nn.Module):
    """A queue with its pointer, written in place, and a mean that each forward puts a new tensor in the place of."""

    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(4, 3, dtype=torch.bfloat16))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.bool).expand(3), persistent=False)
        self.register_buffer("spectrum", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("none", None)

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                latest = x.mean(0)
                self.queue.index_copy_(0, self.pointer.reshape(1), latest.to(self.queue.dtype)[None])
                self.pointer.add_(1).remainder_(4)
                self.mean = 0.9 * self.mean + 0.1 * latest
                self.seen = torch.ones(1, dtype=torch.bool, device=x.device).expand(3)
                self.spectrum.mul_(0.5).add_(torch.complex(latest[0], latest[1]))
        return x + self.mean


def make_model(device="cpu"):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Buffers(),
        nn.BatchNorm1d(3, momentum=None), nn.Linear(3, 2),
    ).to(device)  # fmt: skip


def make_batches(number=5, bad=math.nan):
    """Batch BAD holds this value, or has a loss far out for the guard."""
    generator = torch.Generator().manual_seed(2)
    batches = [(torch.randn(8, 2, 6, 6, generator=generator), torch.randn(8, 2, generator=generator)) for _ in range(5)]
    if bad is not None:
        batches[BAD][0][0, 0, 0, 0] = bad
    return batches[:number]


def everything(model):
    """All of the model that trains or counts, buffers outside its state dict included."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def evaluate(model, device="cpu"):
    model.eval()
    with torch.no_grad():
        out = model(make_batches(1)[0][0].to(device))
    model.train()
    return out


def finite(model):
    return all(torch.isfinite(value).all() for value in everything(model).values())


GUARD = SpikeGuard("skip", ratio=5.0, warmup_steps=1, lr_cut=1.0)

# How a loop scales and steps: settings of the optimizer, the scaler, and what the bad batch has.
WAYS = {
    "plain": ({}, None, math.nan),
    "inf": ({"max_norm": 0.1}, None, math.inf),
    "fixed scale": ({"loss_scale": 256.0}, None, math.nan),
    "dynamic scale": ({"loss_scale": gradops.DynamicLossScale(256.0)}, None, math.nan),
    "unscale_": ({"loss_scale": gradops.DynamicLossScale(256.0)}, "unscale_", math.nan),
    "torch's GradScaler": ({}, torch.amp.GradScaler, math.nan),
    "torch's, unscale_": ({}, (torch.amp.GradScaler, "unscale_"), math.nan),
    "gradops' GradScaler": ({}, gradops.GradScaler, math.nan),
    "gradops', unscale_": ({}, (gradops.GradScaler, "unscale_"), math.nan),
    "guard": ({"guard": GUARD}, None, None),
}


class Loop:
    """A training loop; `protect` is what is asked for of the model."""

    def __init__(self, way="plain", device="cpu", protect=lambda model: model, model=None, **options):
        settings, scaler, self.bad = WAYS[way]
        self.device, self.model = device, make_model(device) if model is None else model
        scaler, self.unscale = scaler if isinstance(scaler, tuple) else (scaler, scaler)
        self.scaler = scaler(str(device), init_scale=256.0) if isinstance(scaler, type) else None
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.optimizer = gradops.wrap(optimizer, protect=protect(self.model), **settings, **options)

    def backward(self, batch, factor=1.0):
        inputs, targets = (tensor.to(self.device) for tensor in batch)
        loss = nn.functional.mse_loss(self.model(inputs), targets) * factor
        (self.scaler.scale(loss) if self.scaler else self.optimizer.scale(loss)).backward()

    def step(self):
        if self.unscale == "unscale_":
            self.scaler.unscale_(self.optimizer) if self.scaler else self.optimizer.unscale_()
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad()

    def run(self, numbers, accumulate=1):
        """Steps with these batches; each step has `accumulate` micro-batches, and the bad one is the first of them."""
        batches = make_batches(bad=self.bad)
        for number in numbers:
            for micro in range(accumulate):
                batch = batches[number if micro == 0 else (number + micro) % BAD]
                self.backward(batch, 1e4 if number == BAD and self.bad is None else 1.0)
            self.step()
        return self


SEEN, UNSEEN = (0, 1, BAD, 3, 4), (0, 1, 3, 4)
