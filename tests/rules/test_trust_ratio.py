"""LARS's trust ratio: of which norms it is, when they are read, and where it is 1."""

import math

import pytest
import torch

import gradops
from rules import CLASSES

pytestmark = pytest.mark.usefixtures("backend")


def pair(device, weight=2.0, grad=5.0, **options):
    """A parameter of 16 elements, its norm 4 * weight, after a step; and the optimizer."""
    param = torch.full((16,), weight, device=device).requires_grad_()
    param.grad = torch.full_like(param, grad)
    optimizer = gradops.LARS([param], lr=1.0, **options)
    optimizer.step()
    return param, optimizer


def moved(param, weight=2.0):
    return weight - float(param.detach()[0])


def test_a_step_has_the_trust_coefficient_times_the_weights_size(device):
    param, _ = pair(device, weight_decay=0.5, trust_coeff=0.25)
    assert moved(param) == pytest.approx(0.25 * 2.0)


@pytest.mark.parametrize("settings", [{"max_norm": 1.0}, {"clip_value": 0.25}, {"guard": gradops.SpikeGuard()}])
def test_a_clipped_gradients_step_has_the_same_size(settings, device):
    """Its norm goes out of the quotient: the ratio is of the clipped one."""
    param, _ = pair(device, always_adapt=True, trust_coeff=0.25, **settings)
    assert moved(param) == pytest.approx(0.25 * 2.0)


def test_a_loss_scale_is_taken_off_first(device):
    param = torch.full((16,), 2.0, device=device).requires_grad_()
    optimizer = gradops.LARS([param], lr=1.0, weight_decay=0.5, trust_coeff=0.25, loss_scale=64.0)
    optimizer.backward((5.0 * param).sum())
    optimizer.step()
    assert moved(param) == pytest.approx(0.25 * 2.0)


def test_without_decay_the_ratio_is_1(device):
    assert moved(pair(device, trust_coeff=0.25)[0]) == pytest.approx(5.0)


def test_weights_of_0_and_a_gradient_of_0_are_not_adapted(device):
    assert moved(pair(device, weight=0.0, weight_decay=0.5)[0], 0.0) == pytest.approx(5.0)
    assert moved(pair(device, grad=0.0, weight_decay=0.5)[0]) == pytest.approx(0.5 * 2.0)


def test_the_penalty_of_l1_counts_in_the_gradients_norm(device):
    param, _ = pair(device, weight_decay=0.5, l1=3.0, trust_coeff=0.25)
    assert moved(param) == pytest.approx(0.25 * 2.0)


@pytest.mark.parametrize("lr", [0.125, 4.0])
def test_clipped_trust_is_a_bound_on_the_rate(lr, device):
    """ratio / lr, so that the step is ratio * gradient; at most lr * gradient."""
    param = torch.full((16,), 2.0, device=device).requires_grad_()
    param.grad = torch.full_like(param, 0.5)
    gradops.LARS([param], lr=lr, always_adapt=True, trust_coeff=0.25, trust_clip=True).step()
    assert moved(param) == pytest.approx(min(lr, 0.25 * 2.0 / 0.5) * 0.5)


def test_the_bound_on_a_step_is_of_the_scaled_one(device):
    for cap, step, capped in ((0.125, 0.125 * 2.0, True), (0.5, 0.25 * 2.0, False)):
        param, optimizer = pair(device, weight_decay=0.5, trust_coeff=0.25, max_relative_step=cap)
        assert moved(param) == pytest.approx(step)
        assert optimizer.stats.capped.tolist() == [capped]


def edited(param):
    with torch.no_grad():
        param.mul_(4.0)


def edited_behind_autograd(param):
    param.data.mul_(4.0)


@pytest.mark.parametrize("edit", [edited, edited_behind_autograd])
def test_weights_that_somebody_edits_are_read_anew(edit, device):
    param, optimizer = pair(device, always_adapt=True, trust_coeff=0.25)
    edit(param)
    optimizer.refresh_()
    before = float(param.detach()[0])
    optimizer.step()
    assert moved(param, before) == pytest.approx(0.25 * before)


def test_a_skipped_step_leaves_the_norms_as_they_were(device):
    param, optimizer = pair(device, always_adapt=True, trust_coeff=0.25)
    before = float(param.detach()[0])
    param.grad[3] = math.nan
    optimizer.step()
    assert moved(param, before) == 0.0
    param.grad[3] = 5.0
    optimizer.step()
    assert moved(param, before) == pytest.approx(0.25 * before)


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.rule.needs_norms])
def test_an_operators_call_without_the_factors_is_refused(cls):
    params, grads, steps = [torch.ones(2)], [torch.ones(2)], [torch.zeros(())]
    options = cls([torch.ones(2).requires_grad_()]).param_groups[0]
    arguments = (cls.rule.name, params, grads, [], steps, [], torch.tensor(1.0))
    for factors in (None, torch.ones(2)):
        with pytest.raises(ValueError, match="grad_factors must have one value a parameter"):
            torch.ops.gradops._update_(*arguments, hyper=cls.rule.hyper_of(options), grad_factors=factors)
    with pytest.raises(ValueError, match="and none else"):
        torch.ops.gradops._update_(
            "sgd", params, grads, [], steps, [], torch.tensor(1.0), hyper=[0.0, 0.0, 0.0], grad_factors=torch.ones(1)
        )
    assert torch.equal(params[0], torch.ones(2))
