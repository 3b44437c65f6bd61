"""`gradops.fastai` beside fastai's own callbacks."""

import copy

import pytest
import torch

pytest.importorskip("fastai")

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.optimizer import Adam as FastaisAdam
from learners import CLOSE, SCALE, Poison, Watch, grad_ops, weights

from gradops import fastai as gf
from gradops.record.run import Run


@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lr_find_leaks_nothing(learner, precision, trained_before):
    learn = learner(cbs=[grad_ops(precision, max_norm=1.0), Poison(2)])
    if trained_before:
        learn.fit(1, 1e-2)
    learn.fit(0)  # upgrades the optimizer
    before = weights(learn), copy.deepcopy(learn.opt.state_dict())
    learn.lr_find(num_it=8, show_plot=False, suggest_funcs=None)
    after = weights(learn), learn.opt.state_dict()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    for group, old in zip(after[1]["hypers"], before[1]["hypers"], strict=True):
        assert group == old
    torch.testing.assert_close(after[1]["state"], before[1]["state"], rtol=0, atol=0)
    if precision == "fp16":
        assert after[1]["hypers"][0]["gradops_loss_scale"] == (512.0 if trained_before else 1024.0)


def test_gradient_accumulation_steps_when_enough_was_seen(learner):
    trained = []
    for callbacks in ([], [gf.GradOps("fp32", loss_scale=64.0)]):
        learn = learner(cbs=[GradientAccumulation(16), Watch(), *callbacks])
        learn.fit(1, 1e-2)
        assert learn.watch.steps == 1
        learn.opt.zero_grad()
        learn.fit(1, 1e-2)
        trained.append(weights(learn))
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)


def test_gradients_left_over_by_a_fit_do_not_reach_the_next_under_another_scale(learner):
    learn = learner(cbs=[GradientAccumulation(16)])
    learn.fit(1, 1e-2, cbs=[gf.GradOps("fp16")])
    assert all(param.grad is None for param in learn.model.parameters())
    learn.remove_cb(GradientAccumulation)
    learn.fit(1, 1e-2)
    assert int(learn.opt.opt.stats.steps_skipped) == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_callbacks_see_scaled_unclipped_gradients_and_can_unscale_them(learner, precision):
    class Look(Callback):
        def norm(self):
            return torch.stack([param.grad.norm() for param in self.learn.model.parameters()]).norm().item()

        def before_step(self):
            self.norms = [self.norm()]
            self.learn.opt.opt.unscale_()
            self.norms.append(self.norm())

        def after_step(self):
            scale, norm = (getattr(self.learn.grad_ops.stats, name).item() for name in ("loss_scale", "grad_norm"))
            assert scale == (1024.0 if precision == "fp16" else 1.0)
            assert self.norms == pytest.approx([scale * norm, norm], rel=1e-3)
            assert norm > 0.01

    learn = learner(cbs=[grad_ops(precision, max_norm=0.01), Look(), Watch()])
    learn.fit(1, 1e-2)
    assert learn.watch.steps == 6


@pytest.mark.parametrize("rival", [MixedPrecision(), GradientClip()], ids=repr)
def test_callbacks_that_it_replaces_are_refused(learner, rival):
    learn = learner(cbs=[gf.GradOps(), rival])
    with pytest.raises(ValueError, match=f"{rival!r} does: remove that callback"):
        learn.fit(1)


def test_activation_stats_work_beside_it(learner):
    learn = learner(cbs=[gf.GradOps("bf16", max_norm=1.0), ActivationStats(with_hist=True)])
    learn.fit(1, 1e-2)
    assert len(learn.activation_stats.stats) == 6
    assert learn.activation_stats.layer_stats(0)[0]


@pytest.mark.parametrize("opt_func", [FastaisAdam, gf.Adam])
def test_recorder_works_beside_activation_stats(learner, opt_func, tmp_path):
    path = tmp_path / "run.npz"
    callbacks = [
        gf.GradOps("fp16", loss_scale=SCALE),
        gf.StepRecorder(path=path),
        ActivationStats(),
        Poison(2),
        Watch(),
    ]
    learn = learner(opt_func, cbs=callbacks)
    learn.lr_find(num_it=6, show_plot=False, suggest_funcs=None)
    assert learn.step_recorder.recorder is None
    learn.watch.losses.clear()
    learn.fit_one_cycle(1, 1e-2)
    assert len(learn.activation_stats.stats) == 6
    learn.get_preds()
    run = Run.load(path)
    assert run.loss.tolist() == pytest.approx(learn.watch.losses)
    assert run.skipped.tolist() == [False, False, True, False, False, False]
    assert "1.1" in run.layers
    assert not learn.opt.opt.engine.watchers


def test_recorder_without_our_optimizer_is_refused(learner):
    with pytest.raises(TypeError, match="GradOps"):
        learner(cbs=[gf.StepRecorder()]).fit(1)
