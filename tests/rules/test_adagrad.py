"""What Adagrad alone has: a state from the constructor on, which begins above 0."""

import copy

import pytest
import torch
from beside import params_of

import gradops

PAIR = (gradops.Adagrad, torch.optim.Adagrad)

START = 0.5


def pair(device, **settings):
    torch.manual_seed(0)
    weights = [torch.randn(shape, device=device) for shape in ((5, 7), (0,), (17,))]
    options = {"lr": 0.1, "initial_accumulator_value": START}
    params = [[weight.clone().requires_grad_() for weight in weights] for _ in range(2)]
    return gradops.Adagrad(params[0], **options, **settings), torch.optim.Adagrad(params[1], **options)


def step_both(both, seed=0):
    for optimizer in both:
        torch.manual_seed(seed)
        for param in params_of(optimizer):
            param.grad = torch.randn_like(param) if param.requires_grad else None
        optimizer.step()
    for mine, theirs in zip(*map(params_of, both), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        if theirs.requires_grad:
            torch.testing.assert_close(both[0].state[mine]["sum"], both[1].state[theirs]["sum"], rtol=1e-5, atol=1e-6)


def makes_states_late():
    """Whether torch's own makes a state that its constructor has not made; that of torch 2.6 does not."""
    param = torch.ones(1).requires_grad_()
    optimizer = torch.optim.Adagrad([param])
    optimizer.state.clear()
    param.grad = torch.ones(1)
    try:
        optimizer.step()
    except KeyError:
        return False
    return True


torchs_makes_states_late = pytest.mark.skipif(not makes_states_late(), reason="this torch's Adagrad has no late states")


@torchs_makes_states_late
def test_a_parameter_that_comes_later_begins_as_torchs_whatever_its_group_says(device):
    both = pair(device)
    step_both(both)
    for optimizer in both:
        late = torch.ones(9, device=device).requires_grad_()
        optimizer.add_param_group({"params": [late], "initial_accumulator_value": 2.0})
    for seed in (1, 2):
        step_both(both, seed)


def test_a_frozen_parameter_has_no_state_and_begins_as_torchs_when_it_is_trained(device):
    frozen = [torch.ones(6, device=device) for _ in range(2)]
    made = [cls([param], lr=0.1, initial_accumulator_value=START) for cls, param in zip(PAIR, frozen, strict=True)]
    assert not made[0].state
    for param in frozen:
        param.requires_grad_()
    for seed in range(3):
        step_both(made, seed)


@torchs_makes_states_late
def test_a_state_that_somebody_cleared_begins_anew(device):
    both = pair(device)
    step_both(both)
    for optimizer in both:
        optimizer.state.clear()
    step_both(both, 1)


@pytest.mark.parametrize("loads", [False, True])
def test_before_the_first_step_unwrap_and_state_dict_keep_the_start(loads, device):
    ours, theirs = pair(device)
    if loads:
        other, _ = pair(device)
        other.load_state_dict(copy.deepcopy(theirs.state_dict()))
        step_both((other, theirs))
    else:
        step_both((gradops.unwrap(ours), theirs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_sum_of_half_precision_becomes_float32(dtype, wrapped, device):
    param = torch.ones(8, dtype=dtype, device=device).requires_grad_()
    options = {"lr": 0.1, "initial_accumulator_value": START}
    torchs = torch.optim.Adagrad([param], **options)
    optimizer = gradops.wrap(torchs) if wrapped else gradops.Adagrad([param], **options)
    param.grad = torch.full_like(param, 2.0**-10)
    optimizer.step()
    total = optimizer.state[param]["sum"]
    assert total.dtype == torch.float32
    assert torch.equal(total, torch.full_like(total, START + 2.0**-20))


@pytest.mark.parametrize("moments_dtype", [torch.float32, torch.bfloat16])
def test_shared_sums_stay_where_they_are(moments_dtype):
    """Torch's method, and one that is frozen, which has none."""
    params = [torch.ones(8, requires_grad=index != 1) for index in range(3)]
    optimizer = gradops.Adagrad(params, moments_dtype=moments_dtype)
    optimizer.share_memory()
    shared = [optimizer.state[param]["sum"] for param in (params[0], params[2])]
    assert all(total.is_shared() for total in shared)
    for param in (params[0], params[2]):
        param.grad = torch.full_like(param, 2.0)
    optimizer.step()
    assert all(total.dtype == moments_dtype and torch.equal(total, torch.full_like(total, 4.0)) for total in shared)
