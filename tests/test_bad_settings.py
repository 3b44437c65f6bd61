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
    ({"clip_value": -1.0}, ValueError, r"clip_value must be positive.*got -1"),
    ({"clip_value": 0.0}, ValueError, r"clip_value must be positive, got 0.0; None for no clamping"),
    ({"clip_value": math.nan}, ValueError, r"clip_value must be positive.*got nan"),
    ({"norm_type": 0.0}, ValueError, r"norm_type must be positive.*got 0"),
    ({"norm_type": -2.0}, ValueError, r"norm_type must be positive.*got -2"),
    ({"norm_type": math.nan}, ValueError, r"norm_type must be positive.*got nan"),
    ({"loss_scale": 0.0}, ValueError, r"loss_scale must be positive and finite, got 0.0; None for no scaling"),
    ({"loss_scale": -8.0}, ValueError, r"loss_scale must be positive.*got -8"),
    ({"loss_scale": math.nan}, ValueError, r"loss_scale must be positive.*got nan"),
    ({"loss_scale": math.inf}, ValueError, r"loss_scale must be.*got inf"),
    ({"loss_scale": "static"}, ValueError, r"loss_scale.*dynamic.*static"),
    ({"max_relative_step": 0.0}, ValueError, r"(max_relative_step|cap) must be positive.*got 0"),
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
        ({"growth_interval": 0}, "growth_interval"),
        ({"min_scale": 0.0}, "min_scale"),
        ({"min_scale": 4.0, "max_scale": 2.0}, "m(in|ax)_scale"),
    ],
)
def test_dynamic_loss_scale_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        gradops.DynamicLossScale(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cap": 0.0}, "cap"),
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


def test_wrapping_sgd_lists_what_can_be_wrapped():
    param = torch.ones(3).requires_grad_()
    with pytest.raises(TypeError, match=r"Adam\b.*AdamW\b.*SGD"):
        gradops.wrap(torch.optim.SGD([param], lr=0.1))


@pytest.mark.parametrize("thing", [None, "adam", torch.nn.Linear(2, 2), [torch.ones(2)]])
def test_wrapping_something_else_is_a_type_error(thing):
    with pytest.raises(TypeError, match="AdamW"):
        gradops.wrap(thing)


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
