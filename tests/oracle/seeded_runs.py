"""Runs whose gradients come from a seed a step: uninterrupted ones, and ones that a checkpoint resumes."""

import io

import torch
from beside import assert_bitwise, params_of, snapshot


def step(optimizer, seeds=(0,)):
    """A step for each seed."""
    for seed in seeds:
        torch.manual_seed(seed)
        for param in params_of(optimizer):
            param.grad = torch.randn_like(param)
        optimizer.step()


def resumed_after_three_of_five(make):
    """The optimizer of a run that a file resumed, bit for bit the one that went on; `make` gives equal optimizers."""
    whole, first, resumed = make(), make(), make()
    step(whole, range(5))
    step(first, range(3))
    file = io.BytesIO()
    torch.save((params_of(first)[0].detach(), first.state_dict()), file)
    file.seek(0)
    param, state = torch.load(file, weights_only=True)
    params_of(resumed)[0].data.copy_(param)
    resumed.load_state_dict(state)
    step(resumed, range(3, 5))
    assert_bitwise(snapshot(resumed), snapshot(whole))
    return resumed
