"""An optimizer without a recorder warns of a training that stands still, once, and waits for no device to do so."""

import copy
import math
import warnings

import pytest
import torch

import gradops
from gradops.one_pass import engine
from gradops.one_pass.stuck import LOOK_EVERY, StuckWarning


def make(device="cpu"):
    param = torch.nn.Parameter(torch.ones(3, device=device))
    return param, gradops.AdamW([param], lr=0.1)


def steps(param, optimizer, count, value=1.0):
    param.grad = None if value is None else torch.full_like(param, value)
    for _ in range(count):
        optimizer.step()


def warned(caught):
    return [str(warning.message) for warning in caught if warning.category is StuckWarning]


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught


@pytest.mark.parametrize("before", [0, 7])
def test_skipped_steps_warn_once(caught, before):
    param, optimizer = make()
    steps(param, optimizer, before)
    steps(param, optimizer, 29, math.nan)
    steps(param, optimizer, 1)
    assert not warned(caught)
    steps(param, optimizer, 30 + 2 * LOOK_EVERY, math.inf)
    assert len(warned(caught)) == 1
    assert "steps in a row were skipped, up to step" in warned(caught)[0]
    steps(param, optimizer, 1)
    steps(param, optimizer, 200, math.inf)
    assert len(warned(caught)) == 1


def test_skips_now_and_then_do_not_warn(caught):
    param, optimizer = make()
    for _ in range(20):
        steps(param, optimizer, 20, math.inf)
        steps(param, optimizer, 1)
    assert not warned(caught)


@pytest.mark.parametrize("before", [0, 7])
def test_steps_without_a_gradient_warn_once(caught, before):
    param, optimizer = make()
    steps(param, optimizer, before)
    steps(param, optimizer, 49, None)
    steps(param, optimizer, 1)
    assert not warned(caught)
    steps(param, optimizer, 50 + 2 * LOOK_EVERY, None)
    steps(param, optimizer, 200, None)
    assert len(warned(caught)) == 1
    assert "calls of step() in a row found no gradient" in warned(caught)[0]


def test_loading_the_same_checkpoint_again_and_again_is_no_standstill(caught):
    param, optimizer = make()
    steps(param, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    for _ in range(5):
        optimizer.load_state_dict(saved)
        steps(param, optimizer, LOOK_EVERY)
    assert not warned(caught)


def test_skips_that_a_checkpoint_brings_are_not_this_runs(caught):
    param, optimizer = make()
    steps(param, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["gradops_steps_skipped"] = 100
    optimizer.load_state_dict(saved)
    assert not warned(caught)


def test_a_range_test_of_its_looks_length_is_no_standstill(caught):
    model = torch.nn.Linear(2, 1)
    optimizer = gradops.AdamW(model.named_parameters())
    batch = torch.ones(4, 2), torch.zeros(4, 1)
    for _ in range(4):
        gradops.lr_find(model, optimizer, torch.nn.functional.mse_loss, [batch], num_steps=LOOK_EVERY)
    assert not warned(caught)


def test_where_reading_would_wait_saving_looks(device, caught, monkeypatch):
    monkeypatch.setattr(engine, "LOOK_EVERY", math.inf)  # what it comes to on a GPU
    param, optimizer = make(device)
    steps(param, optimizer, 1)
    optimizer.state_dict()
    steps(param, optimizer, 30, math.nan)
    assert not warned(caught)
    optimizer.state_dict()
    optimizer.state_dict()
    assert len(warned(caught)) == 1


def test_with_a_recorder_it_is_the_one_that_warns(caught):
    param, optimizer = make()
    recorder = gradops.Recorder(optimizer, capacity=8)
    steps(param, optimizer, 4 * LOOK_EVERY, math.nan)
    recorder.close()
    assert len(warned(caught)) == 1
