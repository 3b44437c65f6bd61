"""A network with BatchNorm and its training with averaged weights."""

import math

import torch
from beside import assert_same_bits
from torch import nn

import gradops


def make(device="cpu", dtype=torch.float32, ema=None, **settings):
    """A model with BatchNorm and its optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 33), nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 3)).to(device, dtype)
    ema = gradops.WeightEma(0.9) if ema is None else ema
    return model, gradops.AdamW(model.named_parameters(), lr=1e-2, ema=ema, **settings)


def train_step(model, optimizer, seed, skipped=False):
    generator = torch.Generator().manual_seed(seed)
    param = next(model.parameters())
    inputs = torch.randn(16, 7, generator=generator).to(param.device, param.dtype)
    optimizer.zero_grad()
    loss = model(inputs).float().square().mean()
    (loss * (math.nan if skipped else 1.0)).backward()
    optimizer.step()


def train(model, optimizer, steps, first=0):
    for seed in range(first, first + steps):
        train_step(model, optimizer, seed)


def averages(model, optimizer):
    return [optimizer.state[param]["ema"] for param in model.parameters()]


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def assert_near(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.detach().float(), other.detach().float(), rtol=2e-5, atol=2e-6)


def assert_same(mine, theirs):
    """Tensor by tensor, bit for bit."""
    for one, other in zip(mine, theirs, strict=True):
        assert_same_bits(one.detach(), other.detach())
