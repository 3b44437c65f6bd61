"""Bad input is refused with a sentence that names the argument or parameter, and nothing has changed."""

import math

import pytest
import torch
from beside import assert_bitwise, snapshot

import gradops

pytestmark = pytest.mark.usefixtures("backend")

BAD_SETTINGS = [
    ({"max_norm": -1.0}, ValueError, r"max_norm must be positive.*got -1"),
    ({"max_norm": 0.0}, ValueError, r"max_norm must be positive.*got 0"),
    ({"max_norm": math.nan}, ValueError, r"max_norm must be positive.*got nan"),
    ({"max_norm": "one"}, TypeError, r"max_norm.*'one'"),
    ({"clip_value": -1.0}, ValueError, r"clip_value must be positive.*got -1"),
    ({"clip_value": 0.0}, ValueError, r"clip_value must be positive.*got 0"),
    ({"clip_value": math.nan}, ValueError, r"clip_value must be positive.*got nan"),
    ({"norm_type": 0.0}, ValueError, r"norm_type must be positive.*got 0"),
    ({"norm_type": -2.0}, ValueError, r"norm_type must be positive.*got -2"),
    ({"norm_type": math.nan}, ValueError, r"norm_type must be positive.*got nan"),
    ({"loss_scale": 0.0}, ValueError, r"loss_scale must be positive.*got 0"),
    ({"loss_scale": -8.0}, ValueError, r"loss_scale must be positive.*got -8"),
    ({"loss_scale": math.nan}, ValueError, r"loss_scale must be positive.*got nan"),
    ({"loss_scale": math.inf}, ValueError, r"loss_scale must be.*got inf"),
    ({"loss_scale": "static"}, ValueError, r"loss_scale.*dynamic.*static"),
    ({"max_relative_step": 0.0}, ValueError, r"(max_relative_step|cap) must be positive.*got 0"),
    ({"max_relative_step": -0.1}, ValueError, r"(max_relative_step|cap) must be positive.*got -0.1"),
    ({"max_relative_step": math.nan}, ValueError, r"(max_relative_step|cap) must be positive.*got nan"),
]
IDS = [f"{key}={value}" for settings, _, _ in BAD_SETTINGS for key, value in settings.items()]


def make(cls=torch.optim.AdamW, device="cpu", **options):
    param = torch.ones(5, device=device).requires_grad_()
    param.grad = torch.ones_like(param)
    return cls([("layer.weight", param)], lr=0.1, **options), param


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


BAD_PARAMS = {
    "complex": lambda: torch.ones(3, dtype=torch.complex64).requires_grad_(),
    "float64": lambda: torch.ones(3, dtype=torch.float64).requires_grad_(),
    "sparse": lambda: torch.ones(3, 3).to_sparse().requires_grad_(),
}


@pytest.mark.parametrize("kind", BAD_PARAMS)
def test_parameter_that_cannot_be_fused_is_named_at_construction(kind):
    named = [("good", torch.ones(2).requires_grad_()), ("bad.weight", BAD_PARAMS[kind]())]
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"bad\.weight"):
        gradops.AdamW(named)
    try:
        optimizer = torch.optim.AdamW(named)
    except ValueError:
        return  # torch itself refuses some
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"bad\.weight"):
        gradops.wrap(optimizer)
    assert type(optimizer) is torch.optim.AdamW


@pytest.mark.parametrize("kind", ["complex", "float64"])
def test_added_group_that_cannot_be_fused_is_refused_and_not_added(kind):
    optimizer = gradops.AdamW([("good", torch.ones(2).requires_grad_())])
    with pytest.raises((TypeError, ValueError, RuntimeError), match=r"bad\.weight"):
        optimizer.add_param_group({"params": [("bad.weight", BAD_PARAMS[kind]())]})
    assert len(optimizer.param_groups) == 1


def refused_at_step(optimizer, message, error=RuntimeError):
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)
    assert int(optimizer.stats.steps_taken) == int(optimizer.stats.steps_skipped) == 0


def assign_grad_behind_torchs_back(param, grad):
    """torch checks `param.grad = ...` itself; `.data` on both sides gets past it, as frameworks have done."""
    param.grad = torch.zeros_like(param)
    param.grad.data = grad


def test_sparse_gradient_is_refused_with_its_name(device):
    embedding = torch.nn.Embedding(4, 3, sparse=True).to(device)
    other = torch.ones(3, device=device).requires_grad_()
    other.grad = torch.ones_like(other)
    optimizer = gradops.AdamW([("other", other), ("embedding.weight", embedding.weight)])
    embedding(torch.tensor([1, 2], device=device)).sum().backward()
    refused_at_step(optimizer, r"(?i)embedding\.weight.*sparse")


def test_gradient_of_another_shape_is_refused(device):
    optimizer, param = make(gradops.AdamW, device)
    assign_grad_behind_torchs_back(param, torch.ones(7, device=device))
    refused_at_step(optimizer, r"layer\.weight.*shape.*7.*5")


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int32])
def test_gradient_of_another_dtype_family_is_refused(dtype, device):
    optimizer, param = make(gradops.AdamW, device)
    param.grad = None
    param.grad_dtype = None
    try:
        param.grad = torch.ones(5, device=device).to(dtype)
    except (RuntimeError, TypeError):
        pytest.skip("torch itself refuses to assign it")
    refused_at_step(optimizer, r"(?i)layer\.weight")


def test_gradient_on_another_device_is_refused(device):
    optimizer, param = make(gradops.AdamW, device)
    try:
        assign_grad_behind_torchs_back(param, torch.ones(5, device="meta"))
    except RuntimeError:
        pytest.skip("torch itself refuses to assign it")
    refused_at_step(optimizer, r"layer\.weight.*meta")


def test_moment_replaced_by_one_of_another_shape_is_refused(device):
    optimizer, param = make(gradops.AdamW, device)
    optimizer.step()
    optimizer.state[param]["exp_avg"].data = torch.zeros(7, device=device)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"exp_avg of 'layer\.weight' has shape.*7.*5"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


@pytest.mark.parametrize("offset", [0, 3])
def test_gradient_whose_memory_was_freed_is_refused(offset, device):
    """Sharded training frees what views with an offset still look at."""
    optimizer, param = make(gradops.AdamW, device)
    optimizer.step()
    param.grad = torch.ones(8, device=device)[offset : offset + 5]
    param.grad.untyped_storage().resize_(0)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"grad of 'layer\.weight' has no memory"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


@pytest.mark.parametrize("offset", [0, 3])
def test_parameter_whose_memory_was_freed_between_steps_is_refused(offset, device):
    param = torch.ones(8, device=device)[offset : offset + 5].requires_grad_()
    optimizer = gradops.AdamW([("layer.weight", param)])
    param.grad = torch.ones(5, device=device)
    optimizer.step()
    param.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"parameter of 'layer\.weight' has no memory"):
        optimizer.step()


def test_lazily_negated_gradient_is_refused_also_after_an_ordinary_one(device):
    optimizer, param = make(gradops.AdamW, device)
    optimizer.step()
    param.grad = torch._neg_view(torch.ones(5, device=device))
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"grad of 'layer\.weight' is a tensor subclass or a lazy view"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


def test_inference_parameter_is_refused(device):
    with torch.inference_mode():
        param = torch.ones(5, device=device)
    with pytest.raises(RuntimeError, match=r"parameter of 'layer\.weight' is an inference tensor"):
        gradops.AdamW([("layer.weight", param)])


def test_bad_gradient_of_the_last_parameter_leaves_the_first_untouched(device):
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(3)]
    optimizer = gradops.AdamW(params, lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    assign_grad_behind_torchs_back(params[2], torch.ones(4, device=device))
    refused_at_step(optimizer, "shape")
    params[2].grad = None
    optimizer.step()
    assert params[0][0].item() == pytest.approx(1 - 0.1 - 0.001, rel=1e-5)


def test_expanded_parameter_is_refused(device):
    param = torch.ones(1, device=device).expand(5).detach().requires_grad_()

    def build_and_step():
        optimizer = gradops.AdamW([("wide", param)])
        param.grad = torch.ones(5, device=device)
        optimizer.step()

    with pytest.raises((RuntimeError, ValueError), match=r"wide.*(share memory|overlap)"):
        build_and_step()


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_parameter_twice_in_one_group_is_refused():
    param = torch.ones(3).requires_grad_()
    with pytest.raises(ValueError, match=r"(?i)duplicate|more than once|twice"):
        gradops.AdamW([param, param])
    optimizer = torch.optim.AdamW([param, param])
    with pytest.raises(ValueError, match=r"(?i)duplicate|more than once|twice"):
        gradops.wrap(optimizer)


def test_parameter_in_two_groups_is_refused():
    param = torch.ones(3).requires_grad_()
    with pytest.raises(ValueError, match="more than one parameter group"):
        gradops.AdamW([{"params": [param]}, {"params": [param]}])


def test_parameters_on_several_devices_are_refused_or_run(device):
    params = [
        ("here", torch.ones(3, device=device).requires_grad_()),
        ("there", torch.ones(3, device="meta").requires_grad_()),
    ]
    with pytest.raises(RuntimeError, match=rf"parameter of 'there' is on meta; expected {device.type}"):
        gradops.AdamW(params)


def test_step_with_a_loss_scale_but_no_scale_or_backward_raises(device):
    optimizer, param = make(gradops.AdamW, device, loss_scale=8.0)
    refused_at_step(optimizer, r"(?s)scale.*backward|backward.*scale")
    optimizer.backward(param.sum())
    optimizer.step()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"(?s)scale.*backward|backward.*scale"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


def test_own_loss_scale_together_with_grad_scalers_is_refused(device):
    optimizer, param = make(gradops.AdamW, device, loss_scale=8.0)
    scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
    scaler.scale(param.sum()).backward()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"(?i)loss_scale.*GradScaler|GradScaler.*loss_scale"):
        scaler.step(optimizer)
    assert_bitwise(snapshot(optimizer), before)


def test_unscaling_twice_is_refused(device):
    optimizer, param = make(gradops.AdamW, device, loss_scale=8.0)
    optimizer.backward(param.sum())
    optimizer.unscale_()
    with pytest.raises(RuntimeError, match="unscale_"):
        optimizer.unscale_()


def test_unscaling_what_was_not_scaled_is_refused(device):
    optimizer, _ = make(gradops.AdamW, device, loss_scale=8.0)
    with pytest.raises(RuntimeError, match="scale"):
        optimizer.unscale_()


@pytest.mark.parametrize("loss", [torch.ones(3), "loss", 1.0])
def test_scaling_something_that_is_no_loss_is_refused(loss):
    optimizer, _ = make(gradops.AdamW, loss_scale=8.0)
    with pytest.raises((RuntimeError, TypeError, AttributeError, ValueError)):
        optimizer.backward(loss)


def test_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="max_nrom"):
        gradops.AdamW([torch.ones(2).requires_grad_()], max_nrom=1.0)
    with pytest.raises(TypeError, match="max_nrom"):
        gradops.wrap(make()[0], max_nrom=1.0)
