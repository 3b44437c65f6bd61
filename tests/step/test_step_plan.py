"""The plan is built once; whatever changes between two steps must be noticed. One change at a time."""

import copy

import pytest
import torch
from beside import Beside, assert_bitwise, params_of, snapshot
from cases import ParamCase, needs_other_dtypes

import gradops

CASES = [ParamCase((40, 30)), ParamCase((17,)), ParamCase((2, 3, 4, 5))]


def replace_data(optimizer):
    param = params_of(optimizer)[0]
    param.data = torch.randn_like(param)


def replace_data_by_other_strides(optimizer):
    param = params_of(optimizer)[0]
    param.data = param.data.t().contiguous().t()


def swap_the_storages_of_two(optimizer):
    param, other = params_of(optimizer)[0], torch.randn_like(params_of(optimizer)[0])
    param.data, other.data = other.data, param.data


def edit_in_place(optimizer):
    with torch.no_grad():
        params_of(optimizer)[1].add_(1.0)


def move_to_float64_and_back(optimizer):
    for param in params_of(optimizer):
        param.data = param.data.double().float()


def load_own_state_dict(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def load_deep_copy_of_state_dict(optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def replace_param_groups_list(optimizer):
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]


def replace_exp_avg(optimizer):
    state = optimizer.state[params_of(optimizer)[0]]
    state["exp_avg"] = torch.randn_like(state["exp_avg"])


def replace_exp_avg_by_other_strides(optimizer):
    state = optimizer.state[params_of(optimizer)[0]]
    state["exp_avg"] = torch.randn(30, 40).t()


def replace_exp_avg_sq(optimizer):
    state = optimizer.state[params_of(optimizer)[1]]
    state["exp_avg_sq"] = torch.rand_like(state["exp_avg_sq"])


def edit_exp_avg_in_place(optimizer):
    optimizer.state[params_of(optimizer)[2]]["exp_avg"].zero_()


def replace_whole_state_entry(optimizer):
    param = params_of(optimizer)[0]
    optimizer.state[param] = {key: value.clone() for key, value in optimizer.state[param].items()}


def fill_step(optimizer):
    optimizer.state[params_of(optimizer)[0]]["step"].fill_(10.0)


def replace_step(optimizer):
    optimizer.state[params_of(optimizer)[0]]["step"] = torch.tensor(10.0)


def delete_one_state(optimizer):
    del optimizer.state[params_of(optimizer)[1]]


def clear_state(optimizer):
    optimizer.state.clear()


def change_lr(optimizer):
    optimizer.param_groups[0]["lr"] = 0.3


def lr_becomes_a_tensor(optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.3)


def freeze(optimizer):
    params_of(optimizer)[0].requires_grad_(False)


def swap_two_parameters_in_the_group(optimizer):
    params = optimizer.param_groups[0]["params"]
    params[0], params[1] = params[1], params[0]


def pickle_round_trip_of_the_state(optimizer):
    state = optimizer.__getstate__()
    optimizer.__setstate__(state)


CHANGES = [
    replace_data, replace_data_by_other_strides, swap_the_storages_of_two, edit_in_place, move_to_float64_and_back,
    load_own_state_dict, load_deep_copy_of_state_dict, replace_param_groups_list, replace_exp_avg,
    replace_exp_avg_by_other_strides, replace_exp_avg_sq, edit_exp_avg_in_place, replace_whole_state_entry, fill_step,
    replace_step, delete_one_state, clear_state, change_lr, lr_becomes_a_tensor, freeze,
    swap_two_parameters_in_the_group, pickle_round_trip_of_the_state,
]  # fmt: skip


def follow(both):
    """Gives the oracle what the optimizer holds now, read the way a user would read it."""
    optimizer, oracle = both.optimizer, both.oracle
    for row, param in enumerate(params_of(optimizer)):
        state = optimizer.state.get(param, {})
        oracle.params[row] = param.detach().clone()
        oracle.states[row] = oracle.new_state(param, optimizer.param_groups[0])
        oracle.states[row].step = int(state.get("step", 0))
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if key in state:
                oracle.states[row][key].copy_(state[key])


def grads_for(optimizer, device):
    return [torch.randn(param.shape, device=device) for param in params_of(optimizer)]


@pytest.mark.parametrize("settings", [{}, {"max_norm": 1.0, "max_relative_step": 0.01}], ids=["plain", "capped"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_change_between_steps_is_noticed(change, settings, device):
    both = Beside(gradops.AdamW([case.param(device) for case in CASES], lr=0.1, **settings), **settings)
    for _ in range(2):
        both.step(grads_for(both.optimizer, device))
    change(both.optimizer)
    follow(both)
    for _ in range(2):
        both.step(grads_for(both.optimizer, device))


def gradient_vanishes(case, grad):
    return None


def gradient_has_other_strides(case, grad):
    return grad.t().contiguous().t()


def gradient_is_a_view_with_gaps(case, grad):
    return torch.stack([grad, grad], -1)[..., 0]


def gradient_is_new_memory(case, grad):
    return grad.clone()


@pytest.mark.parametrize(
    "change", [gradient_vanishes, gradient_has_other_strides, gradient_is_a_view_with_gaps, gradient_is_new_memory]
)
@pytest.mark.parametrize("row", range(3))
def test_gradient_that_changes_is_noticed_and_noticed_back(row, change, device):
    cases = [ParamCase((4, 5))] * 3
    both = Beside(gradops.AdamW([case.param(device) for case in cases], max_norm=1.0), max_norm=1.0)
    for changed in (False, True, False, True, True, False):
        grads = grads_for(both.optimizer, device)
        if changed:
            grads[row] = change(cases[row], grads[row])
        both.step(grads)


@needs_other_dtypes
def test_gradient_of_another_dtype_is_noticed(device):
    param = torch.randn(33, device=device).requires_grad_()
    param.grad_dtype = None
    both = Beside(gradops.AdamW([param], max_norm=1.0), max_norm=1.0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float32):
        both.step([torch.randn_like(param).to(dtype)])


def test_same_gradient_memory_with_new_values_is_read_again(device):
    param, grad = torch.randn(9, device=device).requires_grad_(), torch.ones(9, device=device)
    both = Beside(gradops.AdamW([param], lr=0.1))
    for _ in range(3):
        both.step([grad])
        grad.mul_(-3.0)


def test_parameter_becomes_half_precision(device):
    module = torch.nn.Linear(7, 5).to(device)
    optimizer = gradops.AdamW(module.parameters(), lr=0.1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float32):
        module.to(dtype)
        both = Beside(optimizer)
        follow(both)
        both.oracle.stats.steps_taken = int(optimizer.stats.steps_taken)
        both.step([torch.randn_like(param) for param in module.parameters()])
        assert all(optimizer.state[param]["exp_avg"].dtype == torch.float32 for param in module.parameters())


def test_parameter_becomes_channels_last(device):
    module = torch.nn.Conv2d(3, 4, 3).to(device)
    both = Beside(gradops.AdamW(module.parameters(), lr=0.1, max_norm=1.0), max_norm=1.0)
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
        module.to(memory_format=memory_format)
        grads = [torch.randn_like(param) for param in module.parameters()]
        both.step(grads)


def test_added_param_group_takes_part(device):
    first, second = ParamCase((9,)), ParamCase((5, 5))
    optimizer = gradops.AdamW([first.param(device)], lr=0.1)
    both = Beside(optimizer)
    both.step(grads_for(optimizer, device))
    optimizer.add_param_group({"params": [second.param(device)], "lr": 0.01})
    both = Beside(optimizer)
    follow(both)
    both.oracle.stats.steps_taken = 1
    for _ in range(2):
        both.step(grads_for(optimizer, device))
    assert [int(optimizer.state[param]["step"]) for param in params_of(optimizer)] == [3, 2]


def test_stats_grow_with_an_added_group(device):
    optimizer = gradops.AdamW([ParamCase((9,)).param(device)])
    optimizer.add_param_group({"params": [ParamCase((5, 5)).param(device)]})
    for param in params_of(optimizer):
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.stats.norms.tolist() == [3.0, 5.0]


def test_removed_parameter_is_left_alone(device):
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(3)]
    optimizer = gradops.AdamW(params, lr=0.1)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        kept = params[1].detach().clone()
        optimizer.param_groups[0]["params"] = [params[0], params[2]]
    assert torch.equal(params[1], kept)
    assert [int(optimizer.state[param]["step"]) for param in params] == [2, 1, 2]


def test_parameter_replaced_by_another_is_noticed(device):
    old, new = (torch.ones(3, device=device).requires_grad_() for _ in range(2))
    optimizer = gradops.AdamW([old], lr=0.1)
    old.grad, new.grad = torch.ones_like(old), torch.ones_like(new)
    optimizer.step()
    kept = old.detach().clone()
    optimizer.param_groups[0]["params"][0] = new
    optimizer.step()
    assert torch.equal(old, kept)
    assert new[0].item() == pytest.approx(1 - 0.1 - 0.001, rel=1e-5)


def test_memory_of_a_dead_parameter_is_never_touched(device):
    """The plan must not write through a pointer whose owner is gone, even if the memory was handed out again."""
    keeper = torch.ones(1000, device=device).requires_grad_()
    optimizer = gradops.AdamW([keeper, torch.ones(1000, device=device).requires_grad_()], lr=0.1)
    for param in params_of(optimizer):
        param.grad = torch.ones_like(param)
    optimizer.step()
    del param
    optimizer.param_groups[0]["params"].pop()
    optimizer.state = type(optimizer.state)(dict, {keeper: optimizer.state[keeper]})
    strangers = [torch.zeros(1000, device=device) for _ in range(20)]
    optimizer.step()
    assert all((stranger == 0).all() for stranger in strangers)


def test_set_state_and_deepcopy_do_not_share_a_plan(device):
    param = torch.ones(5, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], lr=0.1)
    param.grad = torch.ones_like(param)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    twin_param = params_of(twin)[0]
    twin_param.grad = torch.ones_like(twin_param)
    kept = param.detach().clone()
    twin.step()
    assert torch.equal(param, kept)
    assert int(optimizer.state[param]["step"]) == 1
    optimizer.step()
    assert torch.equal(param, twin_param)


def test_amsgrad_turned_on_in_mid_run_is_refused_before_anything_moves(device):
    """torch fails too, with a bare KeyError."""
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([("weight", param)])
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = snapshot(optimizer)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(RuntimeError, match=r"amsgrad.*weight.*max_exp_avg_sq"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)
