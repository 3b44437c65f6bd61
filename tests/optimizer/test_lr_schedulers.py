"""Every scheduler of torch drives a gradops optimizer, made before the wrap or after it, and our step is what runs."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.optim import lr_scheduler as lrs
from torch.optim.swa_utils import SWALR, AveragedModel

import gradops

SCHEDULERS = {
    "LambdaLR": lambda opt: lrs.LambdaLR(opt, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda opt: lrs.MultiplicativeLR(opt, lambda epoch: 0.9),
    "StepLR": lambda opt: lrs.StepLR(opt, 2),
    "MultiStepLR": lambda opt: lrs.MultiStepLR(opt, [2, 3]),
    "ConstantLR": lambda opt: lrs.ConstantLR(opt, total_iters=2),
    "LinearLR": lambda opt: lrs.LinearLR(opt, total_iters=3),
    "ExponentialLR": lambda opt: lrs.ExponentialLR(opt, 0.8),
    "PolynomialLR": lambda opt: lrs.PolynomialLR(opt, total_iters=4),
    "CosineAnnealingLR": lambda opt: lrs.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lrs.CosineAnnealingWarmRestarts(opt, 2),
    "CyclicLR": lambda opt: lrs.CyclicLR(opt, 1e-3, 1e-1, step_size_up=2),
    "CyclicLR without momentum": lambda opt: lrs.CyclicLR(opt, 1e-3, 1e-1, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda opt: lrs.OneCycleLR(opt, 0.1, total_steps=8),
    "ReduceLROnPlateau": lambda opt: lrs.ReduceLROnPlateau(opt, patience=0),
    "SequentialLR": lambda opt: lrs.SequentialLR(opt, [lrs.ConstantLR(opt), lrs.ExponentialLR(opt, 0.9)], [2]),
    "ChainedScheduler": lambda opt: lrs.ChainedScheduler([lrs.ConstantLR(opt), lrs.ExponentialLR(opt, 0.9)], opt),
    "SWALR": lambda opt: SWALR(opt, swa_lr=0.05, anneal_epochs=2),
}


def test_no_scheduler_of_torch_is_missing():
    bases = {"LRScheduler", "_LRScheduler"}
    public = {name for name in lrs.__all__ if name not in bases}
    assert public <= {name.split()[0] for name in SCHEDULERS}


def run(build, name, device, steps=6):
    """Losses, rates and betas seen along the way, and all warnings."""
    torch.manual_seed(0)
    param = torch.randn(6, device=device).requires_grad_()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer, scheduler = build([param], SCHEDULERS[name])
        seen = []
        for _ in range(steps):
            optimizer.zero_grad()
            param.square().sum().backward()
            optimizer.step()
            scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]))
    return param.detach(), seen, sorted(str(warning.message) for warning in caught), optimizer


def plain(params, scheduler):
    optimizer = torch.optim.AdamW(params, lr=0.01)
    return optimizer, scheduler(optimizer)


def made_before_the_wrap(params, scheduler):
    optimizer = torch.optim.AdamW(params, lr=0.01)
    made = scheduler(optimizer)
    return gradops.wrap(optimizer, max_norm=1e9), made


def made_after_the_wrap(params, scheduler):
    optimizer = gradops.wrap(torch.optim.AdamW(params, lr=0.01), max_norm=1e9)
    return optimizer, scheduler(optimizer)


def built_directly(params, scheduler):
    optimizer = gradops.AdamW(params, lr=0.01, max_norm=1e9)
    return optimizer, scheduler(optimizer)


BUILDS = [made_before_the_wrap, made_after_the_wrap, built_directly]


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build.__name__)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedule_and_weights_equal_torchs_and_our_step_runs(name, build, device):
    expected, schedule, warned, _ = run(plain, name, device)
    param, seen, ours, optimizer = run(build, name, device)
    torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6)
    assert seen == schedule
    assert ours == warned
    assert int(optimizer.stats.steps_taken) == 6


@pytest.mark.parametrize("build", [plain, *BUILDS], ids=lambda build: build.__name__)
def test_scheduler_before_the_first_step_is_warned_of(build, device):
    param = torch.ones(3, device=device).requires_grad_()
    _, scheduler = build([param], SCHEDULERS["ExponentialLR"])
    with pytest.warns(UserWarning, match=r"before `optimizer\.step\(\)`"):
        scheduler.step()


def test_wrap_after_the_first_step_remembers_that_it_ran(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([param])
    scheduler = lrs.ExponentialLR(optimizer, 0.9)
    param.grad = torch.ones_like(param)
    optimizer.step()
    gradops.wrap(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


@pytest.mark.parametrize("n_schedulers", [1, 3])
def test_several_schedulers_before_the_wrap_do_not_bypass_our_step(n_schedulers, device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([param])
    schedulers = [lrs.ExponentialLR(optimizer, 0.9) for _ in range(n_schedulers)]
    gradops.wrap(optimizer, max_norm=1.0)
    for taken in range(1, 4):
        param.grad = torch.ones_like(param)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        assert int(optimizer.stats.steps_taken) == taken


def test_unwrap_keeps_the_schedulers_wrapper_but_not_our_step(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([param])
    scheduler = lrs.ExponentialLR(optimizer, 0.9)
    gradops.unwrap(gradops.wrap(optimizer))
    param.grad = torch.ones_like(param)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        scheduler.step()
    assert int(optimizer.state[param]["step"]) == 1
    assert type(optimizer) is torch.optim.AdamW


def test_hooks_fire_once_with_a_scheduler_made_before_the_wrap(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer, calls = torch.optim.AdamW([param]), []
    lrs.ExponentialLR(optimizer, 0.9)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    gradops.wrap(optimizer)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert calls == ["pre", "post"]


def test_tensor_lr_is_filled_in_place_and_used(device):
    runs = []
    for cls in (torch.optim.AdamW, gradops.AdamW):
        param, lr = torch.ones(3, device=device).requires_grad_(), torch.tensor(0.1)
        optimizer = cls([param], lr=lr)
        scheduler = lrs.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            param.grad = torch.ones_like(param)
            optimizer.step()
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] is lr
        runs.append(param.detach())
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-6)


def test_averaged_model_and_swa_average_our_weights(device):
    results = []
    for wrapped in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 2).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
        averaged, scheduler = AveragedModel(model), SWALR(optimizer, swa_lr=0.02, anneal_epochs=2)
        if wrapped:
            gradops.wrap(optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(3, 4, device=device)).square().sum().backward()
            optimizer.step()
            averaged.update_parameters(model)
            scheduler.step()
        results.append([param.detach() for param in averaged.module.parameters()])
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copies_of_a_scheduled_optimizer_step_themselves(copier, device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([param])
    lrs.ExponentialLR(optimizer, 0.9)
    gradops.wrap(optimizer)
    twin = copier(optimizer)
    other = twin.param_groups[0]["params"][0]
    other.grad = torch.ones_like(other)
    twin.step()
    assert int(twin.stats.steps_taken) == 1
    assert int(optimizer.stats.steps_taken) == 0
    assert param.tolist() == [1.0] * 3
