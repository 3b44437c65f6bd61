"""The first moment for every beta1: taken as torch.lerp takes it, so that it forgets a large gradient."""

import pytest
import torch
from beside import Beside
from cases import CHUNK, LAYOUTS, ParamCase

import gradops

BETAS = [0.0, 0.1, 0.49, 0.5, 0.51, 0.9, 0.999]
SIZES = [16.0, 0.01, 3.0, 1e-4]  # of the gradients of one step after the other
EPS = 2.0**-23


def first_moments(param, beta1, grads, **options):
    """The first moment before the first step and after each."""
    optimizer = gradops.AdamW([param], betas=(beta1, 0.5), lr=0.01, **options)
    moments = [torch.zeros_like(grads[0])]
    for grad in grads:
        param.grad = grad
        optimizer.step()
        moments.append(optimizer.state[param]["exp_avg"].clone())
    return moments


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("beta1", [0.0, 1e-30])
def test_first_moment_of_beta1_0_is_the_gradient_to_the_bit(beta1, layout, device):
    """From the old moment 2^-24 of it would stay: 0.0144004822 for 0.0144."""
    param = ParamCase((CHUNK + 70,), layout=layout).param(device)
    grads = [torch.full_like(param, value) for value in (30.0, 0.0144)]
    assert torch.equal(first_moments(param, beta1, grads)[2], grads[1])


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("beta1", BETAS)
def test_first_moment_is_off_by_two_roundings_of_its_terms_and_no_more(beta1, weight_decay, amsgrad, device):
    torch.manual_seed(2)
    case = ParamCase((CHUNK + 70,))
    grads = [case.grad(size, device) for size in SIZES]
    moments = first_moments(case.param(device), beta1, grads, amsgrad=amsgrad, weight_decay=weight_decay)
    for grad, before, after in zip(grads, moments, moments[1:], strict=False):
        terms = beta1 * before.double(), (1.0 - beta1) * grad.double()
        assert ((after.double() - sum(terms)).abs() <= 2.0 * EPS * (terms[0].abs() + terms[1].abs())).all()


@pytest.mark.parametrize("flavour", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("beta1", BETAS)
def test_first_moment_is_torchs(beta1, flavour, device):
    torch.manual_seed(3)
    case = ParamCase((1000,))
    param, grads = case.param(device), [case.grad(size, device) for size in SIZES]
    twin = param.detach().clone().requires_grad_()
    moments = first_moments(param, beta1, grads)
    theirs = torch.optim.AdamW([twin], betas=(beta1, 0.5), lr=0.01, **flavour)
    for grad, before, after in zip(grads, moments, moments[1:], strict=False):
        twin.grad = grad.clone()
        if twin in theirs.state:
            theirs.state[twin]["exp_avg"].copy_(before)
        theirs.step()
        terms = (beta1 * before.double()).abs() + ((1.0 - beta1) * grad.double()).abs()
        apart = (after.double() - theirs.state[twin]["exp_avg"].double()).abs()
        assert (apart <= 4.0 * EPS * terms).all()
        assert beta1 not in (0.0, 0.5) or device.type != "cpu" or not apart.any()


def test_groups_whose_beta1_differs_stand_side_by_side_and_may_change(device):
    """Each row takes the form of its own beta1, as it is at each step."""
    cases = [ParamCase((CHUNK + 70,)), ParamCase((33,)), ParamCase((600,), torch.bfloat16, grad_dtype=torch.bfloat16)]
    groups = [
        {"params": [case.param(device)], "betas": (beta1, 0.5)} for case, beta1 in zip(cases, BETAS, strict=False)
    ]
    both = Beside(gradops.AdamW(groups, lr=0.01))
    for step, size in enumerate(SIZES * 2):
        for index, group in enumerate(both.optimizer.param_groups):
            group["betas"] = (BETAS[(index + 3 * step) % len(BETAS)], 0.5)
        both.step([case.grad(size, device) for case in cases])
