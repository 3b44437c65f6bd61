"""l1: the subgradient of an L1 penalty, added after clipping, beside weight decay; groups that spare norms."""

import math

import pytest
import torch
from beside import Beside, assert_bitwise, snapshot
from cases import DTYPES, LAYOUTS, ParamCase

import gradops


@pytest.mark.parametrize("cls", [gradops.Adam, gradops.AdamW])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_penalised_steps_equal_the_oracle(cls, dtype, layout, device):
    case = ParamCase((2, 3, 4, 5), dtype, layout)
    options = {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True}
    both = Beside(cls([case.param(device)], l1=0.3, max_norm=1.0, **options), l1=0.3, max_norm=1.0)
    for _ in range(3):
        both.step([case.grad(device=device)])


@pytest.mark.parametrize("maximize", [False, True])
def test_penalty_is_added_after_clipping_and_never_maximised(maximize, device):
    param = torch.tensor([2.0, -2.0], device=device).requires_grad_()
    param.grad = torch.full((2,), 100.0, device=device)
    optimizer = gradops.Adam([param], lr=1e-3, betas=(0.0, 0.999), clip_value=1.0, l1=0.25, maximize=maximize)
    optimizer.step()
    grad = -1.0 if maximize else 1.0
    assert optimizer.state[param]["exp_avg"].tolist() == [grad + 0.25, grad - 0.25]
    assert optimizer.stats.abs_max.item() == 100.0


def test_weights_at_zero_stay_there(device):
    param = torch.zeros(5, device=device).requires_grad_()
    param.grad = torch.zeros(5, device=device)
    optimizer = gradops.Adam([param], lr=0.1, l1=1.0)
    optimizer.step()
    assert not param.any()
    assert not optimizer.state[param]["exp_avg"].any()


def test_penalty_drives_useless_weights_to_zero_and_keeps_useful_ones(device):
    param = torch.tensor([0.5, 0.5], device=device).requires_grad_()
    optimizer = gradops.Adam([param], lr=0.01, l1=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        (2 * (param[0] - 1) ** 2).backward()
        optimizer.step()
    assert param[0].item() == pytest.approx(1 - 0.1 / 4, abs=0.02)
    assert abs(param[1].item()) < 0.02


def test_a_groups_own_penalty_wins_over_the_setting(device):
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(3)]
    groups = [{"params": [params[0]]}, {"params": [params[1]], "l1": 0.5}, {"params": [params[2]], "l1": 0.0}]
    optimizer = gradops.Adam(groups, betas=(0.0, 0.999), l1=0.25)
    for param in params:
        param.grad = torch.zeros(3, device=device)
    optimizer.step()
    assert [optimizer.state[param]["exp_avg"][0].item() for param in params] == [0.25, 0.5, 0.0]
    optimizer.l1, optimizer.param_groups[1]["l1"] = 0.125, 1.0
    optimizer.step()
    assert [optimizer.state[param]["exp_avg"][0].item() for param in params] == [0.125, 1.0, 0.0]


def test_wrapped_optimizers_take_the_penalty_of_their_groups(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.wrap(torch.optim.AdamW([{"params": [param], "l1": 0.5}], betas=(0.0, 0.999)))
    param.grad = torch.zeros(3, device=device)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].tolist() == [0.5] * 3


def test_without_a_penalty_no_bit_changes(device):
    results = []
    for group in ({}, {"l1": 0.0}):
        torch.manual_seed(2)
        param = torch.randn(1000, device=device).requires_grad_()
        optimizer = gradops.AdamW([{"params": [param], **group}])
        param.grad = torch.randn_like(param)
        optimizer.step()
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


@pytest.mark.parametrize("l1", [-0.1, math.inf, math.nan])
def test_a_penalty_out_of_range_is_refused(l1):
    param = torch.ones(1).requires_grad_()
    with pytest.raises(ValueError, match="l1 must be finite and not negative"):
        gradops.AdamW([param], l1=l1)
    with pytest.raises(ValueError, match="l1 must be finite and not negative"):
        gradops.AdamW([{"params": [param], "l1": l1}])


def test_a_groups_penalty_that_leaves_its_range_is_refused_at_the_step(device):
    param = torch.ones(1, device=device).requires_grad_()
    optimizer = gradops.AdamW([{"params": [param], "l1": 0.1}])
    param.grad = torch.ones_like(param)
    optimizer.param_groups[0]["l1"] = -0.1
    with pytest.raises(ValueError, match=r"not negative, got -0\.1"):
        optimizer.step()
    assert param.item() == 1.0


def network():
    conv, norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
    layers = [conv, norm, torch.nn.LayerNorm((4, 6, 6)), torch.nn.Flatten(), torch.nn.Linear(144, 2)]
    return torch.nn.Sequential(*layers)


def test_groups_spare_norms_and_biases():
    decayed, spared = gradops.no_decay_groups(network(), weight_decay=0.1, l1=0.01)
    assert [name for name, _ in decayed["params"]] == ["0.weight", "4.weight"]
    assert [name for name, _ in spared["params"]] == [*("0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "4.bias")]
    assert (decayed["weight_decay"], decayed["l1"]) == (0.1, 0.01)
    assert (spared["weight_decay"], spared["l1"]) == (0.0, 0.0)


def test_spared_parameters_without_gradient_signal_do_not_move(device):
    model = network().to(device)
    optimizer = gradops.AdamW(gradops.no_decay_groups(model, weight_decay=0.1, l1=0.01), lr=0.1)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert moved == {"0.weight", "4.weight"}
    assert set(optimizer.stats.names) == set(before)


def test_a_model_without_norms_and_biases_has_one_group():
    (group,) = gradops.no_decay_groups(torch.nn.Linear(3, 3, bias=False), weight_decay=0.1)
    assert group["weight_decay"] == 0.1
