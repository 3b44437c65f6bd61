"""Who clips outside of the step is told so, once; nobody else is, and the watch leaves no trace."""

import copy
import gc
import pickle
import warnings
import weakref

import pytest
import torch

import gradops
from gradops.one_pass.rewritten import STEPS, RewrittenGradientsWarning


def network():
    model = torch.nn.Linear(4, 2)
    return model, gradops.wrap(torch.optim.SGD(model.parameters(), lr=0.1))


def backward(model):
    model(torch.ones(3, 4)).square().sum().backward()


def steps(model, optimizer, count, clip=None, accumulate=1, set_to_none=True):
    for _ in range(count):
        for _ in range(accumulate):
            backward(model)
        if clip is not None:
            clip(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def warned(caught):
    return [warning for warning in caught if warning.category is RewrittenGradientsWarning]


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


def loop(params, max_norm):
    torch.nn.utils.clip_grad_norm_(params, max_norm, foreach=False)


@pytest.mark.parametrize("clip", [torch.nn.utils.clip_grad_norm_, loop, gradops.clip_grad_norm_])
def test_clipping_outside_of_the_step_is_told_once(caught, clip):
    model, optimizer = network()
    steps(model, optimizer, STEPS, clip)  # the first finds the parameter to watch
    assert not warned(caught)
    steps(model, optimizer, 1, clip)
    (warning,) = warned(caught)
    assert "delete that call and set max_norm, as in gradops.wrap" in str(warning.message)
    assert warning.filename == __file__
    steps(model, optimizer, 3 * STEPS, clip)
    assert len(warned(caught)) == 1


@pytest.mark.parametrize(("clips", "hints"), [(True, 1), (False, 0)])
def test_torchs_scaler_with_clipping_is_told_once_and_the_scaler_alone_is_not(caught, clips, hints):
    model, optimizer = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(2 * STEPS):
        scaler.scale(model(torch.ones(3, 4)).square().sum()).backward()
        if clips:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert int(optimizer.stats.steps_taken) == 2 * STEPS
    assert len(warned(caught)) == hints


@pytest.mark.parametrize(
    "how", [{}, {"accumulate": 3}, {"set_to_none": False}, {"accumulate": 2, "set_to_none": False}]
)
def test_gradients_as_backward_left_them_are_not_rewritten(caught, how):
    model, optimizer = network()
    steps(model, optimizer, 2 * STEPS, **how)
    assert not warned(caught)


def test_a_closure_that_clips_is_seen(caught):
    model, optimizer = network()

    def closure():
        optimizer.zero_grad()
        backward(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)

    for _ in range(STEPS + 1):
        optimizer.step(closure)
    assert len(warned(caught)) == 1


def test_ten_steps_running_are_needed(caught):
    model, optimizer = network()
    steps(model, optimizer, STEPS, torch.nn.utils.clip_grad_norm_)
    steps(model, optimizer, 1)
    steps(model, optimizer, 3 * STEPS, torch.nn.utils.clip_grad_norm_)
    assert not warned(caught)


@pytest.mark.parametrize("set_at", [0, STEPS - 2])
def test_with_max_norm_edits_are_nobodys_business(caught, set_at):
    model, optimizer = network()
    steps(model, optimizer, set_at, torch.nn.utils.clip_grad_norm_)
    optimizer.max_norm = 1.0
    steps(model, optimizer, 3 * STEPS, torch.nn.utils.clip_grad_norm_)
    assert not warned(caught)


def test_processes_that_exchange_gradients_write_them(caught, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    model, optimizer = network()
    steps(model, optimizer, 2 * STEPS, torch.nn.utils.clip_grad_norm_)
    assert not warned(caught)


def hooks(model):
    return sum(len(param._post_accumulate_grad_hooks or ()) for param in model.parameters())


def test_the_watch_ends_with_the_first_clean_step_and_with_the_optimizer():
    model, optimizer = network()
    steps(model, optimizer, 1)
    assert hooks(model) == 1
    steps(model, optimizer, 1)
    assert hooks(model) == 0
    other = gradops.SGD(model.parameters(), lr=0.1)
    steps(model, other, 1)
    assert hooks(model) == 1
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
    assert hooks(model) == 0


def test_unwrapping_ends_it():
    model, optimizer = network()
    steps(model, optimizer, 1)
    gradops.unwrap(optimizer)
    gc.collect()
    assert hooks(model) == 0


def test_a_watched_model_and_optimizer_can_be_copied_and_pickled(caught):
    model, optimizer = network()
    steps(model, optimizer, 3, torch.nn.utils.clip_grad_norm_)
    for twin_model, twin in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        steps(twin_model, twin, 2)
        assert hooks(twin_model) == 0
        torch.testing.assert_close(twin.state_dict()["param_groups"][0]["gradops_steps_taken"], 5)
    steps(model, optimizer, STEPS - 2, torch.nn.utils.clip_grad_norm_)
    assert len(warned(caught)) == 1


def test_frozen_parameters_with_a_gradient_are_not_watched():
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    frozen.grad = torch.ones(3)
    optimizer = gradops.SGD([frozen], lr=0.1)
    optimizer.step()
    optimizer.step()
    assert frozen.tolist() == pytest.approx([0.8] * 3)
