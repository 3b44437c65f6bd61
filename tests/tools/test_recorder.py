"""`gradops.Recorder`: every step's numbers, without waiting for the device and without touching the training."""

import copy
import importlib.util
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import gradops

pytestmark = pytest.mark.usefixtures("backend")

PER_PARAM = ("norms", "abs_max", "nonfinite", "capped", "update_ratio", "param_rms")


def make(device, named=True, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).to(device)
    params = model.named_parameters() if named else model.parameters()
    return model, gradops.wrap(torch.optim.AdamW(params, lr=1e-2), **settings)


def train(model, optimizer, steps, poison=(), start=0):
    """Snapshots of `optimizer.stats` and losses, step by step."""
    device = next(model.parameters()).device
    stats, losses = [], []
    for step in range(start, start + steps):
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step)).to(device)
        if step in poison:
            inputs[0, 0] = math.inf
        loss = model(inputs).square().mean()
        optimizer.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        stats.append(optimizer.stats.clone())
        losses.append(loss.detach())
    return stats, losses


def same(run, stats, losses):
    np.testing.assert_array_equal(run.grad_norm, [step.grad_norm.item() for step in stats])
    np.testing.assert_array_equal(run.clip_coef, [step.clip_coef.item() for step in stats])
    np.testing.assert_array_equal(run.loss_scale, [step.loss_scale.item() for step in stats])
    np.testing.assert_array_equal(run.skipped, [bool(step.found_inf) for step in stats])
    np.testing.assert_array_equal(run.loss, [loss.item() for loss in losses])
    for name in PER_PARAM:
        np.testing.assert_array_equal(getattr(run, name), [getattr(step, name).tolist() for step in stats], name)


@pytest.mark.parametrize("capacity", [1, 3, 4, 100])
def test_every_step_is_recorded_as_stats_had_it(device, capacity):
    model, optimizer = make(device, max_norm=0.05, max_relative_step=0.01, loss_scale=64.0)
    with gradops.Recorder(optimizer, capacity=capacity) as recorder:
        expected = train(model, optimizer, 8, poison={3})
        run = recorder.run()
    same(run, *expected)
    assert run.steps.tolist() == list(range(8))
    assert run.skipped.tolist() == [step == 3 for step in range(8)]
    assert (run.clip_coef < 1).any()
    assert run.capped.any()
    assert run.nonfinite[3].any()


@pytest.mark.parametrize("action", ["skip", "clip"])
def test_what_a_guard_does_is_recorded(device, action):
    model, optimizer = make(device, guard=gradops.SpikeGuard(action=action, warmup_steps=4, lr_cut=0.5))
    with gradops.Recorder(optimizer) as recorder:
        for step in range(8):
            loss = model(torch.ones(5, 6, device=device)).square().mean() * (1e4 if step == 5 else 1.0)
            optimizer.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        run = recorder.run()
    assert run.skipped.tolist() == [action == "skip" and step == 5 for step in range(8)]
    assert int(optimizer.stats.steps_skipped) == run.skipped.sum()
    assert run.lr[5, 0] == np.float32(1e-2)
    assert run.lr[6, 0] == pytest.approx(0.5e-2, rel=0.05)


def test_run_holds_names_sizes_groups_and_rates(device):
    model, _ = make(device)
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters(), "lr": torch.tensor(0.25)}]
    optimizer = gradops.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    recorder = gradops.Recorder(optimizer, model)
    for step in range(3):
        train(model, optimizer, 1, start=step)
        scheduler.step()
    run = recorder.run()
    assert run.names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert (run.sizes.tolist(), run.groups.tolist()) == ([48, 8, 16, 2], [0, 0, 1, 1])
    assert run.lr.tolist() == [[0.5, 0.25], [0.25, 0.125], [0.125, 0.0625]]


def test_columns_follow_the_model_whatever_the_groups_order(device):
    model, _ = make(device)
    groups = [{"params": list(model[2].parameters())}, {"params": list(model[0].parameters())}]
    optimizer = gradops.AdamW(groups)
    recorder = gradops.Recorder(optimizer, model)
    (stats, _) = train(model, optimizer, 2)
    run = recorder.run()
    assert run.names == [name for name, _ in model.named_parameters()]
    assert run.norms[1].tolist() == stats[1].norms[[2, 3, 0, 1]].tolist()


def test_reading_out_in_between_changes_nothing(device):
    model, optimizer = make(device)
    recorder = gradops.Recorder(optimizer, model, capacity=4)
    stats, losses = [], []
    for step in range(7):
        more = train(model, optimizer, 1, start=step)
        stats += more[0]
        losses += more[1]
        same(recorder.run(), stats, losses)


@pytest.mark.parametrize("with_model", [False, True])
def test_training_is_bitwise_the_one_without_a_recorder(device, with_model):
    plain_model, plain = make(device, max_norm=1.0)
    model, optimizer = make(device, max_norm=1.0)
    gradops.Recorder(optimizer, model if with_model else None, capacity=2)
    for twin in ((plain_model, plain), (model, optimizer)):
        train(*twin, 5, poison={2})
    for param, other in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert torch.equal(param, other)


def test_a_step_without_gradients_is_no_step(device):
    model, optimizer = make(device)
    recorder = gradops.Recorder(optimizer, capacity=2)
    for step in range(4):
        optimizer.step()
        train(model, optimizer, 1, start=step)
        optimizer.step()
    assert recorder.run().steps.tolist() == [0, 1, 2, 3]


def test_recording_may_begin_late_and_a_loaded_checkpoint_sets_the_count(device):
    model, optimizer = make(device)
    train(model, optimizer, 3)
    recorder = gradops.Recorder(optimizer, capacity=2)
    optimizer.step()
    train(model, optimizer, 1)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 1)
    optimizer.load_state_dict(checkpoint)  # one step back: the same count follows again
    train(model, optimizer, 2)
    assert recorder.run().steps.tolist() == [3, 4, 4, 5]


def test_parameters_that_come_later_have_nan_before(device):
    model, optimizer = make(device)
    recorder = gradops.Recorder(optimizer)
    train(model, optimizer, 2)
    late = nn.Parameter(torch.ones(3, device=device))
    optimizer.add_param_group({"params": [("late", late)], "lr": 0.125})
    late.grad = torch.full_like(late, 2.0)
    optimizer.step()
    run = recorder.run()
    assert run.names[-1] == "late"
    assert np.isnan(run.norms[:2, -1]).all()
    assert np.isnan(run.lr[:2, 1]).all()
    assert run.norms[2, -1] == pytest.approx(12**0.5)
    assert run.lr[2, 1] == 0.125


def test_losses_of_accumulated_gradients_add_up(device):
    model, optimizer = make(device)
    recorder = gradops.Recorder(optimizer)
    inputs = torch.ones(2, 6, device=device)
    losses = [model(inputs).sum() / 2, model(inputs).square().sum() / 2]
    for loss in losses:
        optimizer.backward(loss)
    optimizer.step()
    train(model, optimizer, 1)
    run = recorder.run()
    assert run.loss[0] == pytest.approx((losses[0] + losses[1]).item())
    assert run.loss[1] != pytest.approx(run.loss[0])


def test_loss_by_hand_by_closure_and_none(device):
    model, optimizer = make(device)
    recorder = gradops.Recorder(optimizer)
    inputs = torch.ones(2, 6, device=device)

    def closure():
        optimizer.zero_grad()
        loss = model(inputs).square().sum()
        loss.backward()
        return loss

    expected = [float(optimizer.step(closure).detach()), 2.5, math.nan]
    recorder.loss(2.5)
    optimizer.step()
    optimizer.step()
    np.testing.assert_allclose(recorder.run().loss, expected)


def test_after_close_nothing_is_recorded_and_no_hook_is_left(device):
    model, optimizer = make(device)
    with gradops.Recorder(optimizer, model) as recorder:
        train(model, optimizer, 2)
    train(model, optimizer, 2)
    assert recorder.run().steps.tolist() == [0, 1]
    assert optimizer.engine.watchers == ()
    assert not any(module._forward_hooks for module in model.modules())
    recorder.close()


def test_two_recorders_see_the_same(device):
    model, optimizer = make(device)
    recorders = [gradops.Recorder(optimizer, capacity=capacity) for capacity in (2, 50)]
    expected = train(model, optimizer, 5)
    for recorder in recorders:
        same(recorder.run(), *expected)
    recorders[0].close()
    train(model, optimizer, 1)
    assert [len(recorder.run().steps) for recorder in recorders] == [5, 6]


def test_updates_are_tracked_until_the_last_recorder_is_closed(device):
    model, optimizer = make(device)
    first, second = gradops.Recorder(optimizer), gradops.Recorder(optimizer)
    train(model, optimizer, 2)
    run = first.run()
    assert (run.update_ratio > 0).all()
    rms = [param.detach().square().mean().sqrt().item() for param in model.parameters()]
    assert run.param_rms[1] == pytest.approx(rms)
    first.close()
    assert optimizer.track_updates
    second.close()
    assert not optimizer.track_updates
    optimizer.track_updates = True
    gradops.Recorder(optimizer).close()
    assert optimizer.track_updates


def test_copies_of_a_recorded_optimizer_and_model_are_not_recorded(device):
    model, optimizer = make(device)
    recorder = gradops.Recorder(optimizer, model)
    train(model, optimizer, 1)
    copies = [(model, optimizer), (copy.deepcopy(model), None), (pickle.loads(pickle.dumps(model)), None)]
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin.engine.watchers == ()
    for twin, _ in copies[1:]:
        twin(torch.full((1, 6), 1e6, device=device))
    train(model, optimizer, 1)
    assert len(recorder.run().steps) == 2
    assert recorder.run().activation_abs_max.max() < 1e5


def test_unwrapped_optimizer_is_not_recorded(device):
    model, optimizer = make(device)
    recorder = gradops.Recorder(optimizer, model)
    train(model, optimizer, 1)
    gradops.unwrap(optimizer)
    model(torch.ones(1, 6, device=device)).sum().backward()
    optimizer.step()
    assert len(recorder.run().steps) == 1
    assert not any(module._forward_hooks for module in model.modules())


def test_half_precision_run_shows_the_loss_scale(device):
    model, optimizer = make(device, loss_scale=gradops.DynamicLossScale(2.0**10, growth_interval=2))
    recorder = gradops.Recorder(optimizer)
    expected = train(model, optimizer, 6, poison={4})
    run = recorder.run()
    same(run, *expected)
    assert run.loss_scale.tolist() == [1024.0, 1024.0, 2048.0, 2048.0, 4096.0, 2048.0]
    assert run.about["min_scale"] == 2.0**-14


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "capacity must be positive, got 0"),
        ({"activations_every": 0}, ValueError, "activations_every"),
        ({"modules": ["nowhere"]}, ValueError, "no module 'nowhere'"),
    ],
)
def test_wrong_arguments_are_refused(device, wrong, error, message):
    model, optimizer = make(device)
    with pytest.raises(error, match=message):
        gradops.Recorder(optimizer, model, **wrong)
    assert optimizer.engine.watchers == ()
    assert not any(module._forward_hooks for module in model.modules())


def test_an_optimizer_of_torchs_is_refused(device):
    model, _ = make(device)
    with pytest.raises(TypeError, match=r"gradops\.wrap, got Rprop"):
        gradops.Recorder(torch.optim.Rprop(model.parameters()), model)


def test_without_numpy_the_extra_is_named(monkeypatch):
    optimizer = gradops.AdamW([torch.nn.Parameter(torch.ones(2))])
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numpy" else found(name))
    with pytest.raises(ModuleNotFoundError, match=r"Recorder needs numpy: run pip install 'gradops\[report\]'"):
        gradops.Recorder(optimizer)
    assert optimizer.engine.watchers == ()
    assert not optimizer.track_updates
