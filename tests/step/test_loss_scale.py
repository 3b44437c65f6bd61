"""An optimizer's own loss scale: moves as GradScaler's, never outside its bounds, and never fails silently."""

import copy
import math
import pickle

import pytest
import torch
from beside import Beside, assert_bitwise, snapshot
from cases import ParamCase
from hypothesis import given
from hypothesis import strategies as st

import gradops

DYNAMIC = {"init_scale": 1024.0, "growth_interval": 3}


def saved(optimizer, key):
    return optimizer.state_dict()["param_groups"][0][f"gradops_{key}"]


def step_with(optimizer, param, value):
    optimizer.scale(torch.zeros((), device=param.device))
    param.grad = torch.full_like(param, value)
    optimizer.step()


@given(overflows=st.lists(st.booleans(), min_size=1, max_size=20))
def test_scale_moves_as_grad_scalers(device, overflows):
    param, theirs = (torch.ones(3, device=device).requires_grad_() for _ in range(2))
    optimizer = gradops.AdamW([param], lr=0.01, loss_scale=gradops.DynamicLossScale(**DYNAMIC))
    twin = torch.optim.AdamW([theirs], lr=0.01)
    scaler = torch.amp.GradScaler(device.type, **DYNAMIC)
    for overflow in overflows:
        step_with(optimizer, param, math.inf if overflow else saved(optimizer, "loss_scale"))
        scaler.scale(torch.zeros((), device=device))
        theirs.grad = torch.full_like(theirs, math.inf if overflow else scaler.get_scale())
        scaler.step(twin)
        scaler.update()
        assert saved(optimizer, "loss_scale") == scaler.get_scale()
        assert saved(optimizer, "growth_tracker") == scaler._get_growth_tracker()
    torch.testing.assert_close(param, theirs)


def test_scale_never_leaves_its_bounds(device):
    param = torch.ones(3, device=device).requires_grad_()
    policy = gradops.DynamicLossScale(init_scale=4.0, growth_interval=1, min_scale=1.0, max_scale=16.0)
    optimizer = gradops.AdamW([param], loss_scale=policy)
    scales = []
    for value in [math.nan] * 4 + [1.0] * 6:
        step_with(optimizer, param, value)
        scales.append(saved(optimizer, "loss_scale"))
    assert scales == [2.0, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0]


def test_two_hundred_overflows_leave_a_usable_scale(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], loss_scale="dynamic")
    for _ in range(200):
        step_with(optimizer, param, math.inf)
    assert saved(optimizer, "loss_scale") == 2.0**-14
    step_with(optimizer, param, 1.0)
    assert int(optimizer.stats.steps_taken) == 1
    assert param.isfinite().all()


def test_defaults_are_those_of_the_contract():
    policy = gradops.DynamicLossScale()
    values = (policy.init_scale, policy.growth_factor, policy.backoff_factor, policy.growth_interval)
    assert values == (2.0**16, 2.0, 0.5, 2000)
    assert (policy.min_scale, policy.max_scale) == (2.0**-14, 2.0**24)


def test_other_factors_are_used(device):
    param = torch.ones(3, device=device).requires_grad_()
    policy = gradops.DynamicLossScale(init_scale=100.0, growth_factor=1.5, backoff_factor=0.3, growth_interval=2)
    both = Beside(gradops.AdamW([param], loss_scale=policy), loss_scale=policy)
    for value in [1.0, 1.0, 1.0, math.inf, 1.0, 1.0, math.inf, math.inf]:
        both.step([torch.full_like(param, value)])


def test_fixed_scale_stays_and_skips(device):
    case = ParamCase((5,))
    both = Beside(gradops.AdamW([case.param(device)], loss_scale=128.0), loss_scale=128.0)
    for event in (1.0, math.inf, 1.0):
        both.step([case.grad(128.0, device) * event])
    assert both.optimizer.stats.loss_scale.item() == 128.0
    assert int(both.optimizer.stats.steps_skipped) == 1


def test_stats_show_the_scale_this_step_used(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], loss_scale=gradops.DynamicLossScale(init_scale=8.0, growth_interval=1))
    step_with(optimizer, param, 1.0)
    assert optimizer.stats.loss_scale.item() == 8.0
    assert saved(optimizer, "loss_scale") == 16.0


def test_scale_without_a_policy_is_one(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.stats.loss_scale.item() == 1.0


def test_backward_equals_scale_then_backward(device):
    grads = []
    for run in (lambda opt, loss: opt.backward(loss), lambda opt, loss: opt.scale(loss).backward()):
        param = torch.arange(3.0, device=device).requires_grad_()
        optimizer = gradops.AdamW([param], loss_scale=64.0)
        run(optimizer, param.square().sum())
        grads.append(param.grad.tolist())
        optimizer.step()
        assert optimizer.stats.grad_norm.item() == pytest.approx(math.sqrt(20.0))
    assert grads == [[0.0, 128.0, 256.0]] * 2


def test_backward_without_a_loss_scale_is_plain_backward(device):
    param = torch.arange(3.0, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    optimizer.backward(param.square().sum())
    assert param.grad.tolist() == [0.0, 2.0, 4.0]
    optimizer.step()
    assert int(optimizer.stats.steps_taken) == 1


def test_unscale_divides_the_gradients_and_the_step_does_not_again(device):
    param = torch.ones(4, device=device).requires_grad_()
    both = Beside(gradops.AdamW([param], loss_scale=64.0, max_norm=1.0), loss_scale=64.0, max_norm=1.0)
    optimizer = both.optimizer
    optimizer.backward((param * 3).sum())
    optimizer.unscale_()
    assert param.grad.tolist() == [3.0] * 4
    param.grad.mul_(2)
    grads = [param.grad.clone()]
    optimizer.step()
    both.compare(both.oracle.step(grads, unscaled=True))
    assert optimizer.stats.grad_norm.item() == pytest.approx(12.0)


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_repairing_gradients_after_unscale_does_not_unskip_the_step(poison, device):
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], loss_scale=gradops.DynamicLossScale(**DYNAMIC))
    optimizer.scale(torch.zeros((), device=device))
    param.grad = torch.full_like(param, poison)
    before = snapshot(optimizer)
    optimizer.unscale_()
    param.grad.zero_()
    optimizer.step()
    assert_bitwise(snapshot(optimizer), before)
    assert bool(optimizer.stats.found_inf)
    assert saved(optimizer, "loss_scale") == 512.0
    step_with(optimizer, param, 1.0)
    assert int(optimizer.stats.steps_taken) == 1


def test_unscale_without_a_loss_scale_leaves_gradients(device):
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    param.grad = torch.full_like(param, 3.0)
    optimizer.unscale_()
    optimizer.step()
    assert param.grad.tolist() == [3.0] * 4


def test_closure_may_scale_its_loss_inside_the_step(device):
    """Lightning runs forward and backward in the closure."""
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], loss_scale=8.0)

    def closure():
        optimizer.zero_grad()
        loss = (param * 3).sum()
        optimizer.backward(loss)
        return loss

    assert optimizer.step(closure).item() == 12.0
    assert optimizer.stats.grad_norm.item() == pytest.approx(6.0)


def test_two_losses_may_be_scaled_before_one_step(device):
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], loss_scale=8.0)
    optimizer.backward(param.sum())
    optimizer.backward(param.sum())
    assert param.grad.tolist() == [16.0] * 4
    optimizer.step()
    assert optimizer.stats.grad_norm.item() == pytest.approx(4.0)


def test_failed_backward_leaves_the_next_unscaled_one_refused(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], loss_scale="dynamic")
    with pytest.raises(RuntimeError, match="scalar"):
        optimizer.backward(param * 2)
    param.sum().backward()
    with pytest.raises(RuntimeError, match="neither scale\\(\\) nor backward\\(\\)"):
        optimizer.step()
    optimizer.zero_grad()
    optimizer.backward(param.sum())
    with pytest.raises(RuntimeError, match="scalar"):
        optimizer.backward(param * 2)
    optimizer.step()  # of the loss that was scaled before the one that failed
    assert optimizer.stats.grad_norm.item() == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize("again", ["scale", "backward"])
def test_another_scaled_loss_after_unscale_is_refused(device, again):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], loss_scale=1024.0)
    optimizer.backward(param.sum())
    optimizer.unscale_()
    with pytest.raises(RuntimeError, match="unscale_\\(\\) has been called since the last step"):
        getattr(optimizer, again)(param.sum())
    optimizer.step()
    assert optimizer.stats.grad_norm.item() == pytest.approx(math.sqrt(3))
    optimizer.zero_grad()
    optimizer.backward(param.sum())
    optimizer.step()
    assert int(optimizer.stats.steps_taken) == 2


@pytest.mark.parametrize("hand_over", [lambda o: o, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_waiting_scale_of_a_checkpoint_is_in_the_next_one(hand_over, device):
    optimizer = gradops.AdamW([torch.ones(3, device=device).requires_grad_()])
    checkpoint = optimizer.state_dict()
    checkpoint["param_groups"][0].update(gradops_loss_scale=256.0, gradops_growth_tracker=1)
    optimizer.load_state_dict(checkpoint)
    again = hand_over(optimizer)
    again.load_state_dict(again.state_dict())
    again.loss_scale = "dynamic"
    assert again.scale(torch.ones((), device=device)).item() == 256.0
    assert int(again.engine.buffers.growth_tracker) == 1


@pytest.mark.parametrize(("saved_scale", "begins"), [(256.0, 256.0), (1.0, 2.0**16), (2.0**30, 2.0**24)])
def test_scale_of_a_checkpoint_waits_for_the_policy(saved_scale, begins, device):
    optimizer = gradops.AdamW([torch.ones(3, device=device).requires_grad_()])
    checkpoint = optimizer.state_dict()
    checkpoint["param_groups"][0].update(gradops_loss_scale=saved_scale, gradops_growth_tracker=1)
    optimizer.load_state_dict(checkpoint)
    assert optimizer.state_dict()["param_groups"][0]["gradops_loss_scale"] == saved_scale
    optimizer.loss_scale = "dynamic"
    assert optimizer.scale(torch.ones((), device=device)).item() == begins
    assert int(optimizer.engine.buffers.growth_tracker) == (saved_scale != 1.0)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("loss_scale", math.nan, ValueError),
        ("loss_scale", "dynamic", TypeError),
        ("growth_tracker", math.nan, ValueError),
        ("steps_taken", math.inf, ValueError),
    ],
)
@pytest.mark.parametrize("policy", [None, 8.0, "dynamic"])
def test_checkpoint_with_a_scale_or_count_that_is_no_number_is_refused(policy, key, value, error, device):
    """Before anything has changed, by load_state_dict, and by wrap of a plain optimizer that has loaded it."""
    param, other = (torch.ones(3, device=device).requires_grad_() for _ in range(2))
    optimizer, plain = gradops.AdamW([param], loss_scale=policy), torch.optim.AdamW([other])
    step_with(optimizer, param, 1.0)
    before = snapshot(optimizer)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    checkpoint["param_groups"][0].update({f"gradops_{key}": value, "lr": 7.0})
    with pytest.raises(error, match=f"gradops_{key}"):
        optimizer.load_state_dict(checkpoint)
    assert_bitwise(snapshot(optimizer), before)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    plain.load_state_dict(checkpoint)
    with pytest.raises(error, match=f"gradops_{key}"):
        gradops.wrap(plain, loss_scale=policy)
    assert type(plain) is torch.optim.AdamW


@pytest.mark.parametrize(("saved_scale", "begins"), [(0.0, 2.0**-14), (-1.0, 2.0**-14), (math.inf, 2.0**24)])
def test_scale_of_a_checkpoint_is_kept_inside_the_policys_bounds(saved_scale, begins, device):
    optimizer = gradops.AdamW([torch.ones(3, device=device).requires_grad_()], loss_scale="dynamic")
    checkpoint = optimizer.state_dict()
    checkpoint["param_groups"][0]["gradops_loss_scale"] = saved_scale
    optimizer.load_state_dict(checkpoint)
    assert optimizer.scale(torch.ones((), device=device)).item() == begins
