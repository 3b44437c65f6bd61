"""What the tests of refusals share."""

import pytest
import torch
from beside import assert_bitwise, snapshot


def make(cls=torch.optim.AdamW, device="cpu", **options):
    param = torch.ones(5, device=device).requires_grad_()
    param.grad = torch.ones_like(param)
    return cls([("layer.weight", param)], lr=0.1, **options), param


def refused_at_step(optimizer, message, error=RuntimeError):
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)
    assert int(optimizer.stats.steps_taken) == int(optimizer.stats.steps_skipped) == 0
