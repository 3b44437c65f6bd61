"""Bad settings are refused with a sentence that names the argument, and nothing has changed."""

import math

import pytest
import torch
from beside import assert_bitwise, snapshot
from refused import make

import gradops

pytestmark = pytest.mark.usefixtures("backend")

BAD_SETTINGS = [
    ({"max_norm": -1.0}, ValueError, r"max_norm must be positive.*got -1"),
    ({"max_norm": 0.0}, ValueError, r"max_norm must be positive, got 0.0; None for no clipping"),
    ({"max_norm": math.nan}, ValueError, r"max_norm must be positive.*got nan"),
    ({"max_norm": "one"}, TypeError, r"max_norm.*'one'"),
    ({"max_norm": False}, TypeError, r"max_norm must be a number, got False; None for no clipping"),
    ({"clip_value": -1.0}, ValueError, r"clip_value must be positive.*got -1"),
    ({"clip_value": 0.0}, ValueError, r"clip_value must be positive, got 0.0; None for no clamping"),
    ({"clip_value": False}, TypeError, r"clip_value must be a number, got False; None for no clamping"),
    ({"clip_value": math.nan}, ValueError, r"clip_value must be positive.*got nan"),
    ({"norm_type": 0.0}, ValueError, r"norm_type must be positive.*got 0"),
    ({"norm_type": -2.0}, ValueError, r"norm_type must be positive.*got -2"),
    ({"norm_type": math.nan}, ValueError, r"norm_type must be positive.*got nan"),
    ({"loss_scale": 0.0}, ValueError, r"loss_scale must be positive and finite, got 0.0; None for no scaling"),
    ({"loss_scale": -8.0}, ValueError, r"loss_scale must be positive.*got -8"),
    ({"loss_scale": math.nan}, ValueError, r"loss_scale must be positive.*got nan"),
    ({"loss_scale": math.inf}, ValueError, r"loss_scale must be.*got inf"),
    ({"loss_scale": "static"}, ValueError, r"loss_scale.*dynamic.*static"),
    ({"loss_scale": "off"}, ValueError, r"loss_scale must be .*dynamic.*got 'off'; None for no scaling"),
    ({"loss_scale": False}, TypeError, r"loss_scale must be .*dynamic.*got False; None for no scaling"),
    ({"max_relative_step": 0.0}, ValueError, r"max_relative_step must be positive.*got 0.0; None for no cap"),
    ({"max_relative_step": False}, TypeError, r"max_relative_step must be a number, got False; None for no cap"),
    ({"guard": 0}, TypeError, r"guard must be a SpikeGuard or None, got 0"),
    ({"ema": 0.999}, TypeError, r"ema must be a WeightEma or None, got 0.999"),
    ({"protect": False}, TypeError, r"protect must be .* or None, got bool"),
    ({"backend": "off"}, ValueError, r"backend must be one of None, .*got 'off'"),
    ({"clip_mode": None}, ValueError, r"clip_mode must be one of norm, agc, got None; max_norm=None for no clipping"),
    ({"rounding": None}, ValueError, r"rounding must be one of nearest, kahan, got None; nearest is torch's"),
    ({"l1": None}, TypeError, r"l1 must be a number, got None; 0 for no penalty"),
    ({"l1": -1.0}, ValueError, r"l1 must be finite and not negative, got -1.0; 0 for no penalty"),
    ({"max_relative_step": -0.1}, ValueError, r"(max_relative_step|cap) must be positive.*got -0.1"),
    ({"max_relative_step": math.nan}, ValueError, r"(max_relative_step|cap) must be positive.*got nan"),
]

IDS = [f"{key}={value}" for settings, _, _ in BAD_SETTINGS for key, value in settings.items()]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS, ids=IDS)
def test_wrap_refuses_a_bad_setting_and_leaves_the_optimizer(settings, error, message, device):
    optimizer, _ = make(device=device)
    attributes = set(vars(optimizer))
    with pytest.raises(error, match=message):
        gradops.wrap(optimizer, **settings)
    assert type(optimizer) is torch.optim.AdamW
    assert set(vars(optimizer)) == attributes


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS, ids=IDS)
@pytest.mark.parametrize("cls", [gradops.Adam, gradops.AdamW])
def test_constructors_refuse_a_bad_setting(cls, settings, error, message, device):
    with pytest.raises(error, match=message):
        make(cls, device, **settings)


@pytest.mark.parametrize(("settings", "error", "message"), BAD_SETTINGS, ids=IDS)
def test_bad_setting_assigned_later_is_refused_before_anything_moves(settings, error, message, device):
    optimizer, _ = make(gradops.AdamW, device)
    optimizer.step()
    before = snapshot(optimizer)

    def assign_and_step():
        for key, value in settings.items():
            setattr(optimizer, key, value)
        optimizer.step()

    with pytest.raises(error, match=message):
        assign_and_step()
    assert_bitwise(snapshot(optimizer), before)
    assert int(optimizer.stats.steps_taken) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_scale": 0.0}, "init_scale"),
        ({"init_scale": math.nan}, "init_scale"),
        ({"growth_factor": 0.5}, "growth_factor"),
        ({"backoff_factor": 1.5}, "backoff_factor"),
        ({"backoff_factor": 0.0}, "backoff_factor"),
        ({"growth_interval": 0}, "growth_interval must be at least 1, got 0; growth_factor=1 .* never grows"),
        ({"min_scale": 0.0}, "min_scale"),
        ({"min_scale": 4.0, "max_scale": 2.0}, "m(in|ax)_scale"),
        ({"init_scale": 2.0**25}, "max_scale must be at least init_scale, which is 33554432.0, got 16777216.0"),
        ({"init_scale": 2.0**-20}, "min_scale must be .* at most init_scale, which is 9.5.*got 6.1"),
        ({"max_scale": math.inf}, "max_scale must be finite"),
    ],
)
def test_dynamic_loss_scale_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        gradops.DynamicLossScale(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 0.0}, "cap must be positive and finite, got 0.0; max_relative_step=None for no cap"),
        ({"cap": -1.0}, "cap"),
        ({"cap": math.nan}, "cap"),
        ({"cap": 0.1, "warmup_steps": -1}, "warmup_steps"),
        ({"cap": 0.1, "floor": -0.1}, "floor"),
        ({"cap": 0.1, "floor": math.nan}, "floor"),
    ],
)
def test_relative_step_cap_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        gradops.RelativeStepCap(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": None}, 'action must be "skip" or "clip", got None; guard=None for no guard'),
        ({"lr_cut": 0.0}, "lr_cut must be above 0 and at most 1, got 0.0; 1 for no cut"),
    ],
)
def test_spike_guard_says_what_switches_it_off(options, message):
    with pytest.raises(ValueError, match=message):
        gradops.SpikeGuard(**options)


class OwnStep(torch.optim.AdamW):
    def step(self, closure=None):
        return None


@pytest.mark.parametrize("cls", [torch.optim.Rprop, torch.optim.ASGD, torch.optim.Adadelta, OwnStep])
def test_refusal_of_another_optimizer_names_the_way_on(cls):
    with pytest.raises(TypeError) as caught:
        gradops.wrap(cls([torch.ones(3).requires_grad_()], lr=0.1))
    message = str(caught.value)
    assert "AdamW" in message
    assert f"leave {cls.__name__} as it is, with gradops.clip_grad_norm_ for clipping and gradops.GradScaler" in message


def test_the_way_on_with_sgd_clips_what_torch_cannot_and_skips(device):
    param = torch.ones(2, device=device).requires_grad_()
    optimizer, scaler = torch.optim.SGD([param], lr=0.1), gradops.GradScaler(device.type, init_scale=4.0)
    for gradient, moved_by in (((3e20, 4e20), (0.06, 0.08)), ((math.inf, 1.0), (0.0, 0.0))):
        before = param.detach().clone()
        optimizer.zero_grad()
        scaler.scale((param * torch.tensor(gradient, device=device)).sum()).backward()
        scaler.unscale_(optimizer)
        gradops.clip_grad_norm_([param], 1.0)
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(before - param.detach(), torch.tensor(moved_by, device=device))
    assert bool(scaler.last_step_skipped)
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("thing", [None, "adam", torch.nn.Linear(2, 2), [torch.ones(2)]])
def test_wrapping_something_else_is_a_type_error(thing):
    with pytest.raises(TypeError, match=f"AdamW.*got {type(thing).__name__}, which is no optimizer"):
        gradops.wrap(thing)


def test_wrapping_a_class_or_what_holds_an_optimizer_says_what_to_pass():
    optimizer, _ = make()
    with pytest.raises(TypeError, match="got the class AdamW; pass an instance"):
        gradops.wrap(torch.optim.AdamW)
    with pytest.raises(TypeError, match=r"got ConstantLR, which holds the optimizer; pass its \.optimizer"):
        gradops.wrap(torch.optim.lr_scheduler.ConstantLR(optimizer))
    holder = torch.optim.Rprop([torch.ones(2).requires_grad_()], lr=0.1)
    holder.optimizer = optimizer  # as Accelerate's is an optimizer and holds one
    with pytest.raises(
        TypeError,
        match=r"got Rprop, which holds the optimizer; wrap that one before prepare\(\).*accelerate.Acc",
    ):
        gradops.wrap(holder)


def test_wrapping_twice_with_other_options_is_refused(device):
    optimizer, _ = make(device=device)
    gradops.wrap(optimizer, max_norm=1.0)
    for other in ({"max_norm": 2.0}, {}, {"max_norm": 1.0, "clip_value": 1.0}):
        with pytest.raises(ValueError, match=r"max_norm|clip_value|already"):
            gradops.wrap(optimizer, **other)
    assert optimizer.max_norm == 1.0


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="max_nrom"):
        gradops.AdamW([torch.ones(2).requires_grad_()], max_nrom=1.0)
    with pytest.raises(TypeError, match="max_nrom"):
        gradops.wrap(make()[0], max_nrom=1.0)
