"""`gradops.fastai.GradOps` under real Learners: precision, clipping, skipped steps."""

import runpy
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastai")

from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.training import GradientClip
from fastai.optimizer import Adam as FastaisAdam
from fastai.optimizer import OptimWrapper
from learners import CLOSE, SCALE, Poison, Watch, grad_ops, two_groups, weights

import gradops
from gradops import fastai as gf


@pytest.mark.parametrize(
    "opt_func", [FastaisAdam, gf.Adam, partial(OptimWrapper, opt=torch.optim.AdamW)], ids=["fastai", "ours", "torch"]
)
def test_callback_trains_as_gradient_clip_does(learner, opt_func):
    trained = []
    for callback in (GradientClip(0.1), gf.GradOps(max_norm=0.1)):
        learn = learner(opt_func, cbs=[callback])
        learn.fit_one_cycle(2, 1e-2)
        trained.append(weights(learn))
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)
    assert isinstance(learn.opt.opt, gradops.AdamW)
    assert learn.grad_ops.stats.clip_coef.item() < 1
    assert set(learn.grad_ops.stats.names) == {name for name, _ in learn.model.named_parameters()}


def test_callback_added_later_continues_with_fastais_state(learner):
    trained = []
    for callbacks in ([], [gf.GradOps()]):
        learn = learner(splitter=two_groups)
        learn.fit(1, slice(1e-3, 1e-2))
        learn.fit(1, slice(1e-3, 1e-2), cbs=callbacks)
        trained.append(weights(learn))
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_forward_runs_in_the_precision_asked_for(learner, precision, dtype):
    """MixedPrecision is a silent float32 no-op on a CPU."""
    seen = []
    learn = learner(cbs=[grad_ops(precision), Watch()])
    learn.model[1][1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    learn.fit(1, 1e-2)
    assert set(seen) == {dtype}
    assert learn.watch.steps == 6
    preds, _ = learn.get_preds()
    assert preds.dtype is torch.float32
    learn.model(torch.randn(2, 1, 6, 6))
    assert seen[-1] is torch.float32
    exact = learner(cbs=[Watch()])
    exact.fit(1, 1e-2)
    assert learn.watch.losses == pytest.approx(exact.watch.losses, rel=0.02)


def test_losses_are_scaled_for_backward_only(learner):
    learn = learner(cbs=[gf.GradOps("fp16", loss_scale=1024.0), Watch()])
    learn.fit(1, 1e-2)
    assert learn.opt.opt.stats.loss_scale.item() == 1024.0
    assert max(learn.watch.losses) < 100


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_real_skips_cancel_and_others_see_them(learner, precision):
    learn = learner(cbs=[grad_ops(precision), Poison(1, 3, 4), Watch()])
    before = None

    class Keep(Callback):
        def before_step(self):
            nonlocal before
            before = weights(learn)

        def after_cancel_step(self):
            now = weights(learn)
            assert all(torch.equal(now[name], before[name]) for name in now)

    learn.fit(1, 1e-2, cbs=[Keep()])
    assert learn.watch.cancelled == [1, 3, 4]
    assert learn.watch.steps == 6
    assert int(learn.opt.opt.stats.steps_taken) == 3


def test_batch_without_gradients_after_a_skip_is_not_cancelled(learner):
    class Drop(Callback):
        order = 80

        def before_step(self):
            if self.learn.train_iter == 2:
                self.learn.opt.opt.zero_grad()

    learn = learner(cbs=[gf.GradOps(), Poison(1), Drop(), Watch()])
    learn.fit(1, 1e-2)
    assert learn.watch.cancelled == [1]


def test_another_optimizer_is_refused_by_name(learner):
    from fastai.optimizer import Larc

    with pytest.raises(TypeError, match="Larc"):
        learner(Larc, cbs=[gf.GradOps()]).fit(1)


@pytest.mark.parametrize("arguments", [{"precision": "int8"}, {"max_norm": -1.0}])
def test_arguments_out_of_range_are_refused_at_once(arguments):
    with pytest.raises(ValueError, match="must be"):
        gf.GradOps(**arguments)


def test_unknown_settings_are_refused():
    for name in ("max_nrom", "backend"):
        with pytest.raises(TypeError, match=name):
            gf.GradOps(**{name: None})


def test_settings_hold_for_the_fit_and_no_longer(learner):
    learn = learner(partial(gf.Adam, max_norm=3.0))
    during = []

    class Look(Callback):
        def before_step(self):
            during.append((self.learn.opt.opt.max_norm, self.learn.opt.opt.clip_value, self.learn.opt.opt.loss_scale))

    learn.fit(1, cbs=[gf.GradOps("fp16", clip_value=0.5), Look()])
    assert set(during) == {(3.0, 0.5, "dynamic")}
    during.clear()
    learn.fit(1, cbs=[Look()])
    assert set(during) == {(3.0, None, None)}


@pytest.mark.parametrize("event", ["after_pred", "after_loss", "after_backward", "before_step"])
def test_an_interrupted_fit_leaves_no_autocast_on_and_can_be_repeated(learner, event):
    class Interrupt(Callback):
        def interrupt(self):
            raise KeyboardInterrupt

    interrupt = Interrupt()
    setattr(interrupt, event, interrupt.interrupt)
    learn = learner(cbs=[gf.GradOps("fp16", loss_scale=SCALE), Watch()])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 1e-2, cbs=[interrupt])
    assert not torch.is_autocast_enabled("cpu")
    started = []

    class Look(Callback):
        def before_backward(self):
            if not started:
                started.append([param.grad for param in self.learn.model.parameters()])

    learn.fit(1, 1e-2, cbs=[Look()])
    assert set(started[0]) == {None}
    assert learn.watch.steps == 6
    assert "forward" not in vars(learn.model)
    assert not learn.opt.opt._optimizer_step_post_hooks


@pytest.mark.slow
@pytest.mark.parametrize("capped", [False, True])
def test_the_guides_example_recovers_from_its_explosion(capped):
    """A CNN without normalisation, `fit_one_cycle` to 0.1: dead at 0.53 with Adam, well under it with a cap."""
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train_fastai.py"))
    cap = gradops.RelativeStepCap(0.1, warmup_steps=100)
    torch.manual_seed(0)
    learn = example["learner"](320 * 64, 12, [gf.GradOps(max_norm=1.0, max_relative_step=cap)] if capped else [])
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *_: None
    learn.fit_one_cycle(1, 0.1)
    ((_, held_out_loss),) = learn.recorder.values
    assert held_out_loss < 0.2 if capped else held_out_loss > 0.5
