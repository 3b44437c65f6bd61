"""`gradops.timm.ModelEma` beside timm's ModelEmaV3 of the same training."""

import copy

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("timm.task")

from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver, ModelEmaV3
from timm_loop import Loop

import gradops
from gradops.timm import ModelEma

ROUNDING = {"rtol": 2e-5, "atol": 1e-6}


def same(ours, theirs):
    ours, theirs = (ema.module.state_dict() for ema in (ours, theirs))
    assert list(ours) == list(theirs)
    torch.testing.assert_close(ours, theirs, **ROUNDING)


class Beside:
    """One training with both averages, which `run` compares after every update."""

    def __init__(self, opt="gradopssgd", counted=True, loop=None, model=None, **options):
        self.loop = loop or Loop(opt)
        self.model = model or self.loop.model
        self.theirs = ModelEmaV3(self.model, **options)
        self.ours = ModelEma(self.model, **options)
        self.counted, self.step = counted, 0

    def run(self, steps=5):
        for _ in range(steps):
            self.loop.backward(self.step)
            self.loop.optimizer.step()
            self.loop.optimizer.zero_grad()
            self.step += 1
            for ema in (self.theirs, self.ours):
                ema.update(self.model, step=self.step if self.counted else None)
            same(self.ours, self.theirs)
        return self


CURVES = {
    "decay": {"decay": 0.9},
    "warmup": {"decay": 0.9, "use_warmup": True},
    "gamma": {"decay": 0.95, "use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 0.75, "min_decay": 0.3},
    "later": {"decay": 0.9, "update_after_step": 4, "use_warmup": True},
    "weights": {"decay": 0.9, "exclude_buffers": True},
}


@pytest.mark.parametrize(("curve", "counted"), [*((curve, True) for curve in CURVES), ("warmup", False)])
def test_averages_are_timms_over_thirty_steps(curve, counted):
    beside = Beside(counted=counted, **CURVES[curve]).run(30)
    assert beside.ours.in_pass
    assert not torch.equal(beside.ours.module.fc.weight, beside.loop.model.fc.weight)


def test_only_the_first_update_reads_weights_and_averages(monkeypatch):
    beside = Beside(decay=0.9).run(1)
    monkeypatch.setattr(torch.Tensor, "lerp_", None)
    beside.theirs = copy.deepcopy(beside.theirs)
    for _ in range(3):
        beside.loop.backward()
        beside.loop.optimizer.step()
        beside.step += 1
        beside.ours.update(beside.loop.model, step=beside.step)
    state = beside.loop.optimizer.state[beside.loop.model.fc.weight]
    assert state["ema"].data_ptr() == beside.ours.module.fc.weight.data_ptr()


def test_layers_that_are_trained_later_are_averaged_as_by_timm():
    loop = Loop()
    loop.model.conv1.requires_grad_(False)
    beside = Beside(loop=loop, decay=0.9).run(3)
    loop.model.conv1.requires_grad_(True)
    beside.run(4)
    assert "ema" in loop.optimizer.state[next(loop.model.conv1.parameters())]


def test_a_state_that_the_optimizer_loads_leaves_the_averages_to_the_module():
    beside = Beside(decay=0.9).run(3)
    saved = copy.deepcopy(beside.loop.optimizer.state_dict())
    beside.run(2)
    beside.loop.optimizer.load_state_dict(saved)
    beside.run(3)


def test_loaded_and_set_averages_go_on_as_timms():
    beside = Beside(decay=0.9).run(3)
    for ema in (beside.ours, beside.theirs):
        ema.module.load_state_dict(Loop().model.state_dict())
    beside.run(2)
    for ema in (beside.ours, beside.theirs):
        ema.set(beside.loop.model)
    same(beside.ours, beside.theirs)
    beside.run(2)


def scripted():
    loop = Loop()
    scripted = torch.jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    loop.task, loop.optimizer = None, gradops.SGD(scripted.parameters(), lr=0.1)
    loop.backward = lambda batch: scripted(torch.ones(3, 2)).sum().backward()
    return {"loop": loop, "model": scripted}


def half():
    loop = Loop()
    loop.model.to(torch.bfloat16)
    loop.images = loop.images.to(torch.bfloat16)
    return {"loop": loop, "stochastic_rounding": False}


def shared():
    loop = Loop()
    loop.second = gradops.SGD(loop.model.parameters(), lr=0.1)
    return {"loop": loop}


def averaging():
    return {"loop": Loop(ema=gradops.WeightEma(0.5))}


ELSEWHERE = {
    "device": lambda: {"device": torch.device("cpu")},
    "dtype": lambda: {"dtype": torch.float64},
    "other optimizer": lambda: {"opt": "sgd"},
    "half": half,
    "scripted": scripted,
    "two optimizers": shared,
    "averaging already": averaging,
}


@pytest.mark.parametrize("why", ELSEWHERE)
def test_what_the_pass_cannot_average_is_averaged_as_by_timm(why):
    beside = Beside(decay=0.9, use_warmup=True, **ELSEWHERE[why]()).run(3)
    assert not beside.ours.in_pass


def resumed(ema, tmp_path, monkeypatch, with_optimizer, warmup):
    """A training of 4 updates, saved by timm's saver, and gone on with for 4, by tasks as timm's script does."""
    monkeypatch.setattr("timm.task.task.ModelEmaV3", ema)
    first = Loop()
    first.task.setup_ema(decay=0.9, use_warmup=warmup)
    first.run(4)
    saver = CheckpointSaver(first.model, first.optimizer, checkpoint_dir=str(tmp_path), task=first.task)
    saver.save_checkpoint(0)
    second, path = Loop(), str(tmp_path / "last.pth.tar")
    resume_task_checkpoint(second.task, path, optimizer=second.optimizer if with_optimizer else None, log_info=False)
    second.task.setup_ema(decay=0.9, use_warmup=warmup)
    load_task_ema_checkpoint(second.task, path)
    second.updates = 4
    second.run(4)
    return second.task.get_trainable_module(ema=True)


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("with_optimizer", [True, False])
def test_resumed_run_goes_on_with_the_averages_as_timms_does(with_optimizer, warmup, tmp_path, monkeypatch):
    theirs = resumed(ModelEmaV3, tmp_path, monkeypatch, with_optimizer, warmup)
    ours = resumed(ModelEma, tmp_path, monkeypatch, with_optimizer, warmup)
    same(ours, theirs)
    assert ours.in_pass == (with_optimizer or not warmup)


def test_another_rhythm_than_the_optimizers_is_refused():
    beside = Beside(decay=0.9).run(2)
    with pytest.raises(RuntimeError, match="there were 0"):
        beside.ours.update(beside.loop.model, step=3)
    beside.loop.backward().optimizer.step()
    with pytest.raises(ValueError, match="step must follow"):
        beside.ours.update(beside.loop.model, step=7)
    beside.ours.update(beside.loop.model, step=3)


def test_optimizer_of_another_kind_or_with_an_average_is_refused():
    loop = Loop("sgd")
    with pytest.raises(TypeError, match="optimizer"):
        ModelEma(loop.model, optimizer=loop.optimizer)
    with pytest.raises(ValueError, match="averages weights already"):
        ModelEma(loop.model, optimizer=gradops.SGD(loop.model.parameters(), lr=0.1, ema=gradops.WeightEma()))


def test_optimizer_that_is_given_is_taken_among_several():
    loop = Loop()
    second = gradops.SGD(loop.model.parameters(), lr=0.1)
    assert ModelEma(loop.model, optimizer=loop.optimizer).in_pass
    assert second.ema is None
    assert loop.optimizer.ema is not None


@pytest.mark.parametrize("take", [gradops.unwrap, lambda optimizer: setattr(optimizer, "ema", None)])
def test_averages_that_are_taken_from_the_pass_are_timms_from_then_on(take):
    beside = Beside(decay=0.9).run(2)
    take(beside.loop.optimizer)
    beside.run(2)
    assert not beside.ours.in_pass


def test_another_average_of_the_optimizers_is_refused():
    beside = Beside(decay=0.9).run(2)
    beside.loop.optimizer.ema = gradops.WeightEma(0.5)
    beside.loop.backward().optimizer.step()
    with pytest.raises(RuntimeError, match="ema was set"):
        beside.ours.update(beside.loop.model, step=3)


def test_copy_goes_on_by_itself():
    beside = Beside(decay=0.9).run(2)
    kept = copy.deepcopy(beside.ours)
    before = copy.deepcopy(kept.module.state_dict())
    beside.run(2)
    torch.testing.assert_close(kept.module.state_dict(), before, rtol=0, atol=0)
