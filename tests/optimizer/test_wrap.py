"""`wrap` upgrades an optimizer in place: whatever held a reference to it holds the same object, and it still works."""

import copy
import inspect
import pickle

import pytest
import torch
from beside import Beside, params_of
from torch.optim.optimizer import register_optimizer_step_post_hook

import gradops

pytestmark = pytest.mark.usefixtures("backend")

TORCH_CLASSES = [torch.optim.Adam, torch.optim.AdamW]
MATCHING = {torch.optim.Adam: gradops.Adam, torch.optim.AdamW: gradops.AdamW}


def make(cls=torch.optim.AdamW, device="cpu", **options):
    param = torch.ones(5, device=device).requires_grad_()
    param.grad = torch.ones_like(param)
    return cls([param], lr=0.1, **options), param


@pytest.mark.parametrize("cls", TORCH_CLASSES)
def test_wrapped_optimizer_is_the_same_object_of_the_matching_class(cls, device):
    optimizer, _ = make(cls, device)
    groups, state, defaults = optimizer.param_groups, optimizer.state, optimizer.defaults
    wrapped = gradops.wrap(optimizer, max_norm=1.0)
    assert wrapped is optimizer
    assert type(wrapped) is MATCHING[cls]
    assert isinstance(wrapped, cls)
    assert wrapped.param_groups is groups
    assert wrapped.state is state
    assert wrapped.defaults is defaults


@pytest.mark.parametrize("cls", TORCH_CLASSES)
def test_unwrap_gives_torchs_optimizer_back(cls, device):
    optimizer, param = make(cls, device)
    attributes, keys = set(vars(optimizer)), optimizer.param_groups[0].keys() - {"params"}
    gradops.wrap(optimizer, max_norm=1.0)
    optimizer.step()
    assert gradops.unwrap(optimizer) is optimizer
    assert type(optimizer) is cls
    assert set(vars(optimizer)) == attributes
    assert optimizer.param_groups[0].keys() == {"params", *keys}
    optimizer.step()
    assert int(optimizer.state[param]["step"]) == 2


@pytest.mark.parametrize("cls", TORCH_CLASSES)
def test_training_goes_on_across_wrap_and_unwrap(cls, device):
    runs = []
    for wrapped_steps in ((), (2, 3)):
        torch.manual_seed(1)
        optimizer, param = make(cls, device)
        for step in range(6):
            if step in wrapped_steps:
                gradops.wrap(optimizer)
            param.grad = torch.randn_like(param)
            optimizer.step()
            gradops.unwrap(optimizer) if step in wrapped_steps else None
        runs.append(param.detach().clone())
    torch.testing.assert_close(*runs, rtol=1e-5, atol=1e-6)


def test_all_constructor_arguments_of_torch_are_accepted(device):
    param = torch.ones(3, device=device).requires_grad_()
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "amsgrad": True, "maximize": True}
    for extra in (
        {},
        {"foreach": True},
        {"fused": True},
        {"foreach": False, "capturable": False, "differentiable": False},
    ):
        for mine, theirs in ((gradops.Adam, torch.optim.Adam), (gradops.AdamW, torch.optim.AdamW)):
            expected, built = theirs([param], **options, **extra), mine([param], **options, **extra)
            assert built.defaults.keys() >= expected.defaults.keys()
            assert all(built.defaults[key] == expected.defaults[key] for key in options)
    assert gradops.Adam([param], 0.1, (0.8, 0.9), 1e-6, 0.1, True).defaults["amsgrad"] is True
    assert gradops.AdamW([param]).param_groups[0]["decoupled_weight_decay"] is True
    assert gradops.Adam([param]).param_groups[0]["decoupled_weight_decay"] is False


def test_decoupled_adam_is_taken_or_refused_with_the_version_that_has_it(device):
    param = torch.ones(3, device=device).requires_grad_()
    if "decoupled_weight_decay" in inspect.signature(torch.optim.Adam).parameters:
        assert gradops.Adam([param], decoupled_weight_decay=True).param_groups[0]["decoupled_weight_decay"] is True
        return
    with pytest.raises(TypeError, match=r"decoupled_weight_decay of Adam needs torch 2\.7 or newer, this is 2\.6"):
        gradops.Adam([param], decoupled_weight_decay=True)


def test_built_directly_equals_wrapped(device):
    results = []
    for build in (lambda p: gradops.AdamW(p, max_norm=0.5), lambda p: gradops.wrap(torch.optim.AdamW(p), max_norm=0.5)):
        torch.manual_seed(2)
        param = torch.randn(20, device=device).requires_grad_()
        optimizer = build([param])
        for _ in range(3):
            param.grad = torch.randn_like(param)
            optimizer.step()
        results.append(param.detach().clone())
    assert torch.equal(*results)


def test_wrapping_twice_with_the_same_options_changes_nothing(device):
    optimizer, _ = make(device=device)
    gradops.wrap(optimizer, max_norm=1.0)
    optimizer.step()
    stats = optimizer.stats
    assert gradops.wrap(optimizer, max_norm=1.0) is optimizer
    assert int(stats.steps_taken) == 1


def test_wrapping_a_gradops_optimizer_with_its_options_is_allowed(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], max_norm=1.0)
    assert gradops.wrap(optimizer, max_norm=1.0) is optimizer


class PlainSubclass(torch.optim.AdamW):
    """As Lightning and others make them: more methods, torch's own step."""

    def extra(self):
        return "extra"


class OwnStep(torch.optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


def test_subclass_with_torchs_step_keeps_its_type_and_methods(device):
    optimizer, param = make(PlainSubclass, device)
    gradops.wrap(optimizer, max_norm=1.0)
    assert isinstance(optimizer, PlainSubclass)
    assert isinstance(optimizer, gradops.AdamW)
    assert optimizer.extra() == "extra"
    optimizer.step()
    assert optimizer.stats.grad_norm.item() == pytest.approx(5**0.5)
    gradops.unwrap(optimizer)
    assert type(optimizer) is PlainSubclass
    assert int(optimizer.state[param]["step"]) == 1


def test_dynamic_subclass_survives_pickle_and_deepcopy(device):
    optimizer, _ = make(PlainSubclass, device)
    gradops.wrap(optimizer, max_norm=1.0)
    optimizer.step()
    for twin in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert isinstance(twin, PlainSubclass)
        assert isinstance(twin, gradops.AdamW)
        assert twin.max_norm == 1.0


def test_subclass_with_its_own_step_is_refused(device):
    optimizer, _ = make(OwnStep, device)
    with pytest.raises(TypeError, match=r"OwnStep.*step"):
        gradops.wrap(optimizer)
    assert type(optimizer) is OwnStep


def test_patched_step_is_refused_with_the_advice_to_wrap_first(device):
    optimizer, _ = make(device=device)
    original = optimizer.step
    patched = optimizer.step = lambda closure=None: original(closure)
    with pytest.raises((RuntimeError, ValueError, TypeError), match=r"wrap.*(first|before)"):
        gradops.wrap(optimizer)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.step is patched


def test_step_hooks_run_once_whenever_they_were_registered(device):
    optimizer, _ = make(device=device)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre, before wrap"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post, before wrap"))
    gradops.wrap(optimizer)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre, after wrap"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global post"))
    try:
        optimizer.step()
    finally:
        handle.remove()
    assert calls == ["pre, before wrap", "pre, after wrap", "post, before wrap", "global post"]


def test_state_dict_hooks_survive(device):
    optimizer, _ = make(device=device)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("save"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("load"))
    gradops.wrap(optimizer)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save", "load"]


def test_profiler_names_the_step(device):
    for build in (gradops.wrap, copy.deepcopy, lambda opt: opt):
        optimizer, _ = make(device=device)
        optimizer = build(gradops.wrap(optimizer))
        for param in params_of(optimizer):
            param.grad = torch.ones_like(param)
        with torch.profiler.profile() as profile:
            optimizer.step()
        names = [event.key for event in profile.key_averages()]
        assert names.count("Optimizer.step#AdamW.step") == 1


def test_zero_grad_profiler_label_and_repr_still_work(device):
    optimizer, _ = make(device=device)
    gradops.wrap(optimizer)
    assert repr(optimizer).startswith("AdamW (")
    with torch.profiler.profile() as profile:
        optimizer.zero_grad()
    assert any("zero_grad" in event.key for event in profile.key_averages())


def test_tied_parameter_counts_once(device):
    tied = torch.nn.Linear(4, 4, bias=False).to(device)
    model = torch.nn.Sequential(tied, tied)
    optimizer = gradops.wrap(torch.optim.AdamW(model.parameters()), max_norm=1.0)
    model(torch.randn(2, 4, device=device)).sum().backward()
    optimizer.step()
    assert optimizer.stats.norms.shape == (1,)
    assert optimizer.stats.grad_norm.item() == pytest.approx(tied.weight.grad.norm().item(), rel=1e-5)
    assert int(optimizer.state[tied.weight]["step"]) == 1


@pytest.mark.parametrize("first", [{}, {"fused": True}, {"foreach": True}, {"foreach": False}, {"amsgrad": True}])
def test_state_torch_left_behind_is_taken_over(first, device):
    """Torch keeps `step` on the CPU or on the device, depending on the flavour."""
    torch.manual_seed(4)
    param = torch.randn(30, device=device).requires_grad_()
    optimizer = torch.optim.AdamW([param], lr=0.1, **first)
    for _ in range(3):
        param.grad = torch.randn_like(param)
        optimizer.step()
    state = optimizer.state[param]
    both = Beside(gradops.wrap(optimizer, max_norm=1.0), max_norm=1.0)
    both.oracle.states[0] = both.oracle.new_state(param, optimizer.param_groups[0])
    both.oracle.states[0].step = 3
    both.synchronise()
    both.step([torch.randn_like(param)])
    assert optimizer.state[param]["exp_avg"].data_ptr() == state["exp_avg"].data_ptr()


def test_bfloat16_moments_of_torch_become_float32(device):
    param = torch.randn(30, device=device).bfloat16().requires_grad_()
    optimizer = torch.optim.AdamW([param], lr=0.1)
    param.grad = torch.randn_like(param)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == torch.bfloat16
    moments = optimizer.state[param]["exp_avg"].clone()
    gradops.wrap(optimizer)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(optimizer.state[param]["exp_avg"], 0.9 * moments.float())


def test_references_held_by_others_stay_valid(device):
    optimizer, _ = make(device=device)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step = optimizer.zero_grad
    wrapped = gradops.wrap(optimizer)
    assert scheduler.optimizer is wrapped
    assert step.__self__ is wrapped


def test_settings_become_attributes(device):
    optimizer, _ = make(device=device)
    cap, policy = gradops.RelativeStepCap(0.1, warmup_steps=5), gradops.DynamicLossScale(init_scale=8.0)
    gradops.wrap(optimizer, max_norm=2.0, norm_type=1.0, clip_value=3.0, max_relative_step=cap, loss_scale=policy)
    assert (optimizer.max_norm, optimizer.norm_type, optimizer.clip_value) == (2.0, 1.0, 3.0)
    assert optimizer.max_relative_step == cap
    assert optimizer.loss_scale == policy


def test_differentiable_optimizer_is_refused_and_left_alone(device):
    optimizer, _ = make(device=device, differentiable=True)
    with pytest.raises(ValueError, match="differentiable"):
        gradops.wrap(optimizer)
    assert type(optimizer) is torch.optim.AdamW


def test_unwrapping_a_plain_optimizer_returns_it(device):
    optimizer, _ = make(device=device)
    assert gradops.unwrap(optimizer) is optimizer
    assert type(optimizer) is torch.optim.AdamW


def test_unwrap_gives_half_precision_parameters_moments_that_torch_can_use(device):
    param = torch.ones(5, dtype=torch.bfloat16, device=device).requires_grad_()
    optimizer = gradops.wrap(torch.optim.AdamW([param], lr=0.1))
    param.grad = torch.ones_like(param)
    optimizer.step()
    gradops.unwrap(optimizer)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype == torch.bfloat16
    assert int(optimizer.state[param]["step"]) == 2
