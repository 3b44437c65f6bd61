"""max_relative_step: no tensor's learning rate exceeds the cap times the size of its weights."""

import math

import pytest
import torch
from against_oracle import any_sequence, steps_of
from beside import Beside, assert_bitwise, snapshot
from cases import CHUNK, DTYPES, LAYOUTS, ParamCase, param_cases
from hypothesis import given
from hypothesis import strategies as st

import gradops

CAPS = [0.05, gradops.RelativeStepCap(0.1), gradops.RelativeStepCap(0.1, warmup_steps=4, floor=0.3)]


@pytest.mark.parametrize("cls", [gradops.Adam, gradops.AdamW])
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_capped_steps_equals_the_oracle(cls, device, data, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=4))
    settings = {
        "max_relative_step": data.draw(st.sampled_from(CAPS)),
        "max_norm": data.draw(st.sampled_from([None, 0.3])),
    }
    any_sequence(cls, device, data, cases, settings)


@pytest.mark.parametrize("size", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rms_is_of_the_whole_tensor(layout, size, device):
    said = steps_of(ParamCase((size,), layout=layout), device, 4, lr=10.0, max_relative_step=0.05)
    assert all(stats.capped == [True] for stats in said)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_is_of_the_stored_half_precision_values(dtype, device):
    steps_of(ParamCase((CHUNK + 3,), dtype, grad_dtype=dtype), device, 4, lr=10.0, max_relative_step=0.05)


def test_rms_gathered_while_writing_equals_rms_read_anew(device):
    """`refresh_` forgets what the last update gathered; the bits of the next step must not depend on that."""
    results = []
    for refresh in (False, True):
        torch.manual_seed(3)
        cases = [
            ParamCase((CHUNK + 77,)),
            ParamCase((40, 30)),
            ParamCase((3,), torch.bfloat16, grad_dtype=torch.bfloat16),
        ]
        optimizer = gradops.AdamW([case.param(device) for case in cases], lr=10.0, max_relative_step=0.05)
        for _ in range(4):
            for param, case in zip(optimizer.param_groups[0]["params"], cases, strict=True):
                param.grad = case.grad(device=device)
            if refresh:
                optimizer.refresh_()
            optimizer.step()
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


def test_where_the_cap_does_not_bind_the_step_is_exactly_adams(device):
    results = []
    for cap in (None, 1e6):
        torch.manual_seed(5)
        param = torch.randn(1000, device=device).requires_grad_()
        optimizer = gradops.AdamW([param], max_norm=1.0, max_relative_step=cap)
        for _ in range(3):
            param.grad = torch.randn_like(param)
            optimizer.step()
        assert not optimizer.stats.capped.any()
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


def test_stats_say_which_parameter_was_capped(device):
    small, large = (torch.full((5,), value, device=device).requires_grad_() for value in (0.1, 100.0))
    optimizer = gradops.AdamW([small, large], lr=0.1, max_relative_step=0.05)
    small.grad, large.grad = torch.ones_like(small), torch.ones_like(large)
    optimizer.step()
    assert optimizer.stats.capped.tolist() == [True, False]
    assert small[0].item() == pytest.approx(0.1 - 0.05 * 0.1 - 0.005 * 0.01 * 0.1, rel=1e-5)


def test_decoupled_decay_uses_the_capped_rate(device):
    param = torch.full((5,), 1.0, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], lr=10.0, weight_decay=0.5, max_relative_step=0.1)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert param[0].item() == pytest.approx(1.0 - 0.1 * 0.5)


def test_floor_lets_a_zero_tensor_leave_zero(device):
    param = torch.zeros(5, device=device).requires_grad_()
    optimizer = gradops.Adam([param], lr=1.0, max_relative_step=gradops.RelativeStepCap(0.1, floor=0.02))
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert param[0].item() == pytest.approx(-0.002, rel=1e-5)


def test_warmup_counts_the_parameters_own_steps(device):
    early, late = (torch.ones(4, device=device).requires_grad_() for _ in range(2))
    cap = gradops.RelativeStepCap(0.1, warmup_steps=4)
    both = Beside(gradops.Adam([early, late], lr=1.0, max_relative_step=cap), max_relative_step=cap)
    for step in range(6):
        both.step([torch.ones_like(early), torch.ones_like(late) if step >= 3 else None])
    assert early.mean() < late.mean()


def test_skipped_step_does_not_advance_the_warmup(device):
    param = torch.ones(4, device=device).requires_grad_()
    cap = gradops.RelativeStepCap(0.1, warmup_steps=10)
    both = Beside(gradops.Adam([param], lr=1.0, max_relative_step=cap), max_relative_step=cap)
    for value in [1.0, math.nan, math.inf, 1.0]:
        both.step([torch.full_like(param, value)])


def edit_in_place(param, optimizer):
    with torch.no_grad():
        param.mul_(100.0)


def replace_data(param, optimizer):
    param.data = param.data * 100.0


def edit_through_data(param, optimizer):
    param.data.mul_(100.0)
    optimizer.refresh_()


def load_parameters(param, optimizer):
    torch.nn.ParameterList([param]).load_state_dict({"0": param.detach() * 100.0})


@pytest.mark.parametrize("edit", [edit_in_place, replace_data, edit_through_data, load_parameters])
def test_rms_is_read_anew_after_the_weights_changed(edit, device):
    param = torch.nn.Parameter(torch.ones(10, device=device))
    both = Beside(gradops.Adam([param], lr=1.0, max_relative_step=0.05), max_relative_step=0.05)
    both.step([torch.randn_like(param)])
    edit(param, both.optimizer)
    both.synchronise()
    assert both.step([torch.randn_like(param)]).capped == [False]


def test_rms_is_read_anew_after_wrap(device):
    param = torch.ones(10, device=device).requires_grad_()
    optimizer = gradops.wrap(torch.optim.Adam([param], lr=1.0), max_relative_step=0.05)
    param.grad = torch.ones_like(param)
    optimizer.step()
    gradops.unwrap(optimizer)
    param.data.mul_(100.0)
    gradops.wrap(optimizer, max_relative_step=0.05)
    optimizer.step()
    assert optimizer.stats.capped.tolist() == [False]


def test_cap_set_in_mid_run_takes_effect(device):
    param = torch.ones(10, device=device).requires_grad_()
    optimizer = gradops.Adam([param], lr=1e-3)
    for cap in (None, 1e-4, None):
        optimizer.max_relative_step = cap
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert optimizer.stats.capped.tolist() == [cap is not None]


def test_parameters_of_no_elements_do_not_disturb_the_others(device):
    cases = [ParamCase((0,)), ParamCase((5,)), ParamCase((3, 0))]
    both = Beside(
        gradops.AdamW([case.param(device) for case in cases], lr=1.0, max_relative_step=0.05), max_relative_step=0.05
    )
    for _ in range(2):
        both.step([case.grad(device=device) for case in cases])
