"""From stats to decision: torch's clip coefficient, and skips that change no bit."""

import math

import pytest
import torch
from beside import Beside, assert_bitwise, snapshot
from cases import NORM_TYPES, ParamCase

import gradops

POISONS = [math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [1e-6, 0.1, 1.0, 1e6, math.inf])
def test_clip_coef_is_torchs_formula(max_norm, norm_type, device):
    param = torch.zeros(50, device=device).requires_grad_()
    optimizer = gradops.Adam([param], max_norm=max_norm, norm_type=norm_type)
    param.grad = torch.randn_like(param)
    optimizer.step()
    norm = torch.linalg.vector_norm(param.grad.double(), norm_type).item()
    assert optimizer.stats.clip_coef.item() == pytest.approx(min(1.0, max_norm / (norm + 1e-6)), rel=2e-5)


def test_clip_coef_of_a_tiny_norm_has_torchs_epsilon(device):
    param = torch.zeros(1, device=device).requires_grad_()
    optimizer = gradops.Adam([param], max_norm=1e-6)
    param.grad = torch.full_like(param, 3e-6)
    optimizer.step()
    assert optimizer.stats.clip_coef.item() == pytest.approx(0.25, rel=1e-5)


def test_clip_coef_of_a_zero_gradient_is_one(device):
    param = torch.ones(5, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], max_norm=1.0)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert optimizer.stats.clip_coef.item() == 1.0


def test_norm_is_over_all_parameters_of_all_groups(device):
    params = [torch.zeros(1, device=device).requires_grad_() for _ in range(2)]
    optimizer = gradops.Adam([{"params": [param]} for param in params], max_norm=1.0)
    params[0].grad, params[1].grad = torch.full_like(params[0], 3.0), torch.full_like(params[1], 4.0)
    optimizer.step()
    assert optimizer.stats.grad_norm.item() == 5.0
    assert optimizer.state[params[0]]["exp_avg"].item() == pytest.approx(0.1 * 3 / 5, rel=1e-5)


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("settings", [{}, {"max_norm": 1.0, "clip_value": 1.0}, {"max_relative_step": 0.05}])
def test_skipped_step_leaves_every_bit(settings, poison, row, device):
    cases = [ParamCase((30,)), ParamCase((4, 5), torch.bfloat16, grad_dtype=torch.bfloat16), ParamCase(())]
    optimizer = gradops.AdamW([case.param(device) for case in cases], lr=0.1, amsgrad=True, **settings)
    both = Beside(optimizer, **settings)
    both.step([case.grad(device=device) for case in cases])
    before, versions = snapshot(optimizer), [param._version for param in optimizer.param_groups[0]["params"]]
    grads = [case.grad(device=device) for case in cases]
    grads[row].view(-1)[-1] = poison
    both.step(grads)
    assert_bitwise(snapshot(optimizer), before)
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (1, 1)
    assert optimizer.stats.clip_coef.item() == 1.0
    assert len(versions) == 3


@pytest.mark.parametrize("poison", POISONS)
def test_first_step_may_be_a_skipped_one(poison, device):
    case = ParamCase((30,))
    both = Beside(gradops.Adam([case.param(device)]))
    bad = case.grad(device=device)
    bad[3] = poison
    both.step([bad])
    both.step([case.grad(device=device)])


def test_skip_happens_without_loss_scaling_and_without_clipping(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    param.grad = torch.tensor([1.0, math.nan, 1.0], device=device)
    optimizer.step()
    assert param.tolist() == [1.0, 1.0, 1.0]


def test_grad_norm_of_a_skipped_step_tells_nan_from_inf(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], max_norm=1.0)
    for values, is_nan in [([1.0, math.inf, -math.inf], False), ([math.inf, math.nan, 0.0], True)]:
        param.grad = torch.tensor(values, device=device)
        optimizer.step()
        assert math.isnan(optimizer.stats.grad_norm) is is_nan
        assert not optimizer.stats.grad_norm.isfinite()


def test_settings_are_plain_attributes_read_at_each_step(device):
    param = torch.zeros(1, device=device).requires_grad_()
    optimizer = gradops.Adam([param], lr=0.0)
    seen = []
    changes = [{}, {"max_norm": 1.0}, {"clip_value": 2.0, "max_norm": 1.0}, {"max_norm": None}]
    for change in changes:
        for key, value in change.items():
            setattr(optimizer, key, value)
        param.grad = torch.full_like(param, 4.0)
        optimizer.step()
        seen.append((optimizer.stats.grad_norm.item(), round(optimizer.stats.clip_coef.item(), 4)))
    assert seen == [(4.0, 1.0), (4.0, 0.25), (2.0, 0.5), (2.0, 1.0)]
