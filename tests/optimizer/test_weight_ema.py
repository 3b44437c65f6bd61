"""The average of the weights: of what it is, when, and that its formulas are other libraries'."""

import copy
import math

import pytest
import torch
from averaged_task import assert_near, assert_same, averages, copies, make, train, train_step
from beside import assert_same_bits
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import gradops
from gradops.reference.update import ema_decay

SKIPPED = {0, 3, 17, 64, 65}


def follow(model, optimizer, update):
    """200 steps with skips; `update(n)` is another library's after the n-th that is taken."""
    taken = 0
    for step in range(200):
        train_step(model, optimizer, step, step in SKIPPED)
        if step not in SKIPPED:
            taken += 1
            update(taken)
    assert int(optimizer.stats.steps_skipped) == len(SKIPPED)


@pytest.mark.parametrize(
    ("ema", "theirs"),
    [
        ({}, {}),
        ({"inv_gamma": 1.0, "power": 2 / 3}, {"use_warmup": True}),
        (
            {"inv_gamma": 5.0, "power": 0.75, "min_decay": 0.2, "start": 11},
            {"use_warmup": True, "warmup_gamma": 5.0, "warmup_power": 0.75, "min_decay": 0.2, "update_after_step": 10},
        ),
    ],
    ids=["constant", "warm-up", "warm-up later"],
)
def test_it_is_timms(ema, theirs, device):
    timm = pytest.importorskip("timm.utils.model_ema")
    model, optimizer = make(device)
    optimizer.ema = gradops.WeightEma(0.98, **{"start": 1, "buffers": model, **ema})
    other = timm.ModelEmaV3(model, decay=0.98, **theirs)
    # timm averages what a NaN batch has left in the running statistics; of skipped steps none is seen here.
    follow(model, optimizer, lambda n: other.update(model, step=n))
    assert_near(averages(model, optimizer), other.module.parameters())
    mine = gradops.ema_model(model, optimizer)
    assert_near(mine[1].buffers(), other.module[1].buffers())
    other.module.load_state_dict(mine.state_dict())


def test_it_is_torchs(device):
    model, optimizer = make(device, ema=gradops.WeightEma(0.97, start=1))
    other = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.97))
    follow(model, optimizer, lambda n: other.update_parameters(model))
    assert_near(averages(model, optimizer), other.module.parameters())
    other.module.load_state_dict(gradops.ema_model(model, optimizer).state_dict())


@pytest.mark.slow  # diffusers takes long to import
@pytest.mark.parametrize("after", [0, 10])
def test_it_is_diffusers(after, device):
    diffusers = pytest.importorskip("diffusers.training_utils")
    warmup = {"inv_gamma": 2.0, "power": 0.75, "min_decay": 0.1}
    model, optimizer = make(device, ema=gradops.WeightEma(0.98, start=after + 1, **warmup))
    other = diffusers.EMAModel(model.parameters(), decay=0.98, use_ema_warmup=True, update_after_step=after, **warmup)
    follow(model, optimizer, lambda n: other.step(model.parameters()))
    assert_near(averages(model, optimizer), other.shadow_params)


FORMULAS = {
    # diffusers' EMAModel(use_ema_warmup=True): the first update copies, and counts from there.
    "diffusers": (
        {"inv_gamma": 2.0, "power": 0.75, "min_decay": 0.1, "start": 1},
        lambda n: 0.0 if n <= 1 else max(0.1, min(0.98, 1 - (1 + (n - 1) / 2.0) ** -0.75)),
    ),
    # ultralytics' ModelEMA(decay, tau)
    "ultralytics": ({"tau": 50.0}, lambda n: 0.98 * (1 - math.exp(-n / 50.0))),
    # torchvision's references: every 32 steps, here every 8
    "torchvision": ({"every": 8, "start": 1}, lambda n: 1.0 if n % 8 else 0.0 if n == 8 else 0.98),
}


@pytest.mark.parametrize(("options", "decay"), FORMULAS.values(), ids=FORMULAS)
def test_it_is_the_formula_of(options, decay, device):
    ema = gradops.WeightEma(0.98, **options)
    model, optimizer = make(device, ema=ema)
    theirs = copies(model.parameters())

    def update(n):
        expected = ema_decay(ema, n)
        assert decay(n) == pytest.approx(1.0 if expected is None else expected)
        for average, param in zip(theirs, model.parameters(), strict=True):
            average.mul_(decay(n)).add_(param.detach(), alpha=1 - decay(n))

    follow(model, optimizer, update)
    assert_near(averages(model, optimizer), theirs)


def test_it_begins_as_the_parameter_before_its_first_update_and_skipped_steps_leave_it(device):
    model, optimizer = make(device, ema=gradops.WeightEma(0.5))
    before = copies(model.parameters())
    train_step(model, optimizer, 0, skipped=True)
    assert_same(averages(model, optimizer), before)
    train_step(model, optimizer, 1)
    halves = [(old + new.detach()) / 2 for old, new in zip(before, model.parameters(), strict=True)]
    assert_near(averages(model, optimizer), halves)
    kept = copies(averages(model, optimizer))
    train_step(model, optimizer, 2, skipped=True)
    assert_same(averages(model, optimizer), kept)


@pytest.mark.parametrize("settings", [{}, {"master_weights": True}, {"rounding": "kahan"}], ids=str)
def test_of_half_precision_it_is_float32_of_what_was_stored(settings, device):
    param = torch.randn(5000, device=device).to(torch.bfloat16).requires_grad_()
    optimizer = gradops.SGD([param], lr=0.1, ema=gradops.WeightEma(0.5), **settings)
    begins = param.detach().float()
    param.grad = torch.randn_like(param)
    optimizer.step()
    stored = optimizer.state[param].get("master", param.detach()).float()
    assert optimizer.state[param]["ema"].dtype == torch.float32
    assert_near([optimizer.state[param]["ema"]], [(begins + stored) / 2])


def test_of_float64_it_is_float64():
    param = torch.ones(5, dtype=torch.float64, requires_grad=True)
    optimizer = gradops.SGD([param], lr=0.1, ema=gradops.WeightEma(0.5))
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert_same_bits(optimizer.state[param]["ema"], torch.full_like(param, 0.95).detach())
    param.data.zero_()
    loaded = copy.deepcopy(optimizer)
    loaded.load_state_dict(optimizer.state_dict())
    assert loaded.state_dict()["state"][0]["ema"].dtype == torch.float64


def test_an_average_of_other_strides_is_the_same(device):
    ours, same = (torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0)).to(device) for _ in range(2))
    params = [ours.requires_grad_(), same.to(memory_format=torch.channels_last).requires_grad_()]
    optimizer = gradops.AdamW(params, lr=0.1, ema=gradops.WeightEma(0.5))
    for _ in range(3):
        for param in params:
            param.grad = param.detach().sign()
        optimizer.step()
        state = optimizer.state[params[0]]
        state["ema"] = state["ema"].transpose(0, 1).contiguous().transpose(0, 1)
    assert_same_bits(optimizer.state[params[0]]["ema"], optimizer.state[params[1]]["ema"])


def test_buffers_are_averaged_with_the_parameters_and_not_in_skipped_steps(device):
    model, optimizer = make(device, protect=None)
    optimizer.ema = gradops.WeightEma(0.75, buffers=[model])
    expected = [buffer.clone() for buffer in (model[1].running_mean, model[1].running_var)]
    for step in range(4):
        train_step(model, optimizer, step, skipped=step == 2)
        if step == 0:  # the average begins with the first step, after its forward
            expected = [model[1].running_mean.clone(), model[1].running_var.clone()]
        elif step != 2:
            expected[0].lerp_(model[1].running_mean, 0.25)
            expected[1].lerp_(model[1].running_var, 0.25)
    live = copies(model.buffers())
    made = gradops.ema_model(model, optimizer)
    assert_near([made[1].running_mean, made[1].running_var], expected)
    assert int(made[1].num_batches_tracked) == int(model[1].num_batches_tracked)
    with gradops.ema_weights(model, optimizer):
        assert_near([model[1].running_mean, model[1].running_var], expected)
    assert_same(model.buffers(), live)


def test_it_can_be_set_and_dropped_at_run_time(device):
    model, optimizer = make(device)
    optimizer.ema = None
    train(model, optimizer, 2)
    assert not any("ema" in state for state in optimizer.state.values())
    begins = copies(model.parameters())
    optimizer.ema = gradops.WeightEma(0.5, buffers=model)
    train_step(model, optimizer, 2)
    expected = [(old + new.detach()) / 2 for old, new in zip(begins, model.parameters(), strict=True)]
    assert_near(averages(model, optimizer), expected)
    optimizer.ema = None
    train_step(model, optimizer, 3)
    assert not any(key.startswith("ema") for state in optimizer.state.values() for key in state)


def test_an_average_that_does_not_fit_is_refused():
    model, optimizer = make()
    train(model, optimizer, 1)
    state = optimizer.state[model[0].weight]
    state["ema"] = state["ema"].half()
    with pytest.raises(RuntimeError, match=r"ema of '0.weight' is (torch\.)?[hH]alf|float16; expected"):
        optimizer.step()
    state["ema"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"ema of '0.weight' has shape .*delete this entry"):
        optimizer.step()


BAD = [
    ({"decay": 1.0}, ValueError, r"decay must be at least 0 and below 1, got 1.0"),
    ({"decay": "most"}, TypeError, r"decay must be a number, got 'most'"),
    ({"min_decay": 0.5}, ValueError, r"min_decay is of the warm-up that inv_gamma gives"),
    ({"min_decay": -0.5, "inv_gamma": 1.0}, ValueError, r"min_decay must be at least 0"),
    ({"inv_gamma": 0.0}, ValueError, r"inv_gamma must be positive and finite, got 0.0"),
    ({"tau": math.inf}, ValueError, r"tau must be positive and finite, got inf"),
    ({"tau": 1.0, "inv_gamma": 1.0}, ValueError, r"inv_gamma and tau are two warm-ups; set one"),
    ({"power": -1.0}, ValueError, r"power must be positive"),
    ({"every": 0}, ValueError, r"every must be a whole number of at least 1, got 0"),
    ({"start": 1.5}, ValueError, r"start must be a whole number of at least 0, got 1.5"),
    ({"start": math.inf}, ValueError, r"start must be a whole number of at least 0, got inf"),
    ({"buffers": 1}, TypeError, r"buffers must be a torch.nn.Module, an iterable of them or None, got int"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=str)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        gradops.WeightEma(**arguments)


def test_its_repr_is_short():
    assert "buffers" not in repr(gradops.WeightEma(buffers=nn.BatchNorm1d(3)))
