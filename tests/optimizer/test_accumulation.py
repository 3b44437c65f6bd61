"""Gradient accumulation: bad micro-batches, one scale a step, and float32 sums of half-precision gradients."""

import math

import pytest
import torch
from cases import needs_other_dtypes

import gradops

POLICY = gradops.DynamicLossScale(init_scale=64.0, growth_interval=1)


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_one_bad_micro_batch_skips_the_step_and_only_it(bad, value, device):
    param = torch.ones(5, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], lr=0.1, loss_scale=POLICY)
    scales = []
    for step in range(3):
        optimizer.zero_grad()
        for micro in range(3):
            factor = value if (step, micro) == (1, bad) else 0.5
            scaled = optimizer.scale((param * factor).sum())
            scales.append(float(optimizer.engine.buffers.current_scale))
            scaled.backward()
        optimizer.step()
    assert scales == [64.0] * 3 + [128.0] * 3 + [64.0] * 3
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (2, 1)
    assert optimizer.stats.grad_norm.item() == pytest.approx(1.5 * math.sqrt(5))


def test_infs_of_opposite_sign_in_two_micro_batches_do_not_cancel(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    for factor in (math.inf, -math.inf):
        (param * factor).sum().backward()
    optimizer.step()
    assert param.tolist() == [1.0] * 3
    assert optimizer.stats.grad_norm.isnan()


@needs_other_dtypes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_may_be_summed_in_float32_in_place(dtype, device):
    """1 + 1/4096 four thousand times: half precision would stay at 1, or stop growing soon after."""
    sums = {}
    for grad_dtype in (dtype, torch.float32):
        param = torch.ones(4, dtype=dtype, device=device).requires_grad_()
        param.grad_dtype = grad_dtype
        optimizer = gradops.AdamW([param], max_norm=1.0)
        param.sum().backward()
        addresses = set()
        for _ in range(4096):
            (param * 2.0**-12).sum().backward()
            addresses.add(param.grad.data_ptr())
        assert (len(addresses), param.grad.dtype) == (1, grad_dtype)
        optimizer.step()
        sums[grad_dtype] = optimizer.stats.grad_norm.item() / 2.0
        assert optimizer.state[param]["exp_avg"].dtype == torch.float32
    assert sums[torch.float32] == 2.0
    assert sums[dtype] < 1.6
