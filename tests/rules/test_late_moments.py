"""Moments that a param group comes to use in mid-run: made as torch makes them."""

import pytest
import torch
from beside import params_of, snapshot

import gradops
from rules import torchs

pytestmark = pytest.mark.usefixtures("backend")


def pair(device, ours=gradops.SGD, **options):
    torch.manual_seed(0)
    values = [torch.randn(shape, device=device) for shape in ((5, 7), (17,))]
    return [
        cls([value.clone().requires_grad_() for value in values], lr=0.1, **options) for cls in (ours, torchs(ours))
    ]


def step_both(optimizers, seed):
    for optimizer in optimizers:
        torch.manual_seed(seed)
        for param in params_of(optimizer):
            param.grad = torch.randn_like(param)
        optimizer.step()
    for mine, theirs in zip(*map(params_of, optimizers), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_momentum_of_a_group_may_be_switched_on_off_and_on(dampening, device):
    both = pair(device)
    for seed, momentum in enumerate((0.0, 0.0, 0.9, 0.9, 0.0, 0.5, 0.5)):
        for optimizer in both:
            optimizer.param_groups[0].update(momentum=momentum, dampening=dampening)
        step_both(both, seed)
    assert [set(state) for state in both[0].state.values()] == [{"step", "momentum_buffer"}] * 2


@pytest.mark.parametrize(
    ("key", "value", "entry"), [("momentum", 0.9, "momentum_buffer"), ("centered", True, "grad_avg")]
)
def test_what_torchs_rmsprop_misses_in_mid_run_begins_at_zero(key, value, entry, device):
    ours, theirs = both = pair(device, gradops.RMSprop)
    step_both(both, 0)
    for optimizer in both:
        optimizer.param_groups[0][key] = value
    for param in params_of(theirs):
        param.grad = torch.ones_like(param)
    with pytest.raises(KeyError, match=entry):
        theirs.step()
    for param in params_of(theirs):
        theirs.state[param][entry] = torch.zeros_like(param)
    for seed in (1, 2):
        step_both(both, seed)
    assert all(state.keys() == {"step", "square_avg", entry} for state in ours.state.values())


def test_a_buffer_that_somebody_took_away_is_made_anew(device):
    both = pair(device, momentum=0.9)
    step_both(both, 0)
    for optimizer in both:
        for state in optimizer.state.values():
            del state["momentum_buffer"]
    step_both(both, 1)


def test_a_parameter_that_moves_to_a_group_with_momentum_gets_a_buffer(device):
    both = pair(device)
    for optimizer in both:
        optimizer.add_param_group({"params": [torch.ones(3, device=device).requires_grad_()], "momentum": 0.9})
    step_both(both, 0)
    for optimizer in both:
        plain, with_momentum = optimizer.param_groups
        with_momentum["params"].append(plain["params"].pop())
    for seed in (1, 2):
        step_both(both, seed)


def test_without_momentum_there_is_no_buffer_and_unwrap_leaves_no_state(device):
    ours, _ = both = pair(device)
    step_both(both, 0)
    assert all(state.keys() == {"step"} for state in ours.state.values())
    assert gradops.unwrap(ours).state_dict()["state"] == {}


def test_before_the_first_update_unwrap_leaves_no_buffer(device):
    """torch's first update has none, and takes the gradient undampened."""
    ours, theirs = pair(device, momentum=0.9, dampening=0.5)
    for param in params_of(ours):
        param.grad = torch.full_like(param, torch.inf)
    ours.step()
    step_both((gradops.unwrap(ours), theirs), 0)


def test_moments_that_are_not_made_late_are_missed(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    for amsgrad in (False, True):
        optimizer.param_groups[0]["amsgrad"] = amsgrad
        param.grad = torch.ones_like(param)
        before = snapshot(optimizer)
        if amsgrad:
            with pytest.raises(RuntimeError, match="amsgrad is on, but the state of 'param_0' has no max_exp_avg_sq"):
                optimizer.step()
            assert torch.equal(before[0][0], param.detach())
        else:
            optimizer.step()
