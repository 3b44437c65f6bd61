"""`gradops.fastai` under real Learners: the callback, the opt_func, and what fastai does around them."""

import copy
import inspect
import math
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("fastai")

from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.hook import ActivationStats
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import lr_find  # noqa: F401  # puts it on Learner
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, load_learner
from fastai.optimizer import Adam as FastaisAdam
from fastai.optimizer import OptimWrapper
from torch.utils.data import TensorDataset

import gradops
from gradops import fastai as gf
from gradops.record.run import Run

CLOSE = {"rtol": 2e-4, "atol": 2e-5}
# A scale under which no gradient of these tests overflows by itself.
SCALE = gradops.DynamicLossScale(init_scale=1024.0)


def callback(precision, **settings):
    return gf.GradOps(precision, **({"loss_scale": SCALE} if precision == "fp16" else {}), **settings)


class Items(TensorDataset):
    def new_empty(self):
        return Items(*(tensor[:0] for tensor in self.tensors))


def data(path, batches=6, size=4):
    torch.manual_seed(1)
    items = Items(torch.randn(batches * size, 1, 6, 6), torch.randn(batches * size, 2))
    loaders = [DataLoader(items, bs=size, num_workers=0) for _ in range(2)]
    return DataLoaders(*loaders, path=path)


def network():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))


def two_groups(model):
    return [list(model[0].parameters()), list(model[1].parameters())]


@pytest.fixture
def learner(tmp_path):
    def make(opt_func=FastaisAdam, cbs=(), **options):
        learn = Learner(
            data(tmp_path), options.pop("model", None) or network(), nn.MSELoss(), opt_func, cbs=list(cbs), **options
        )
        learn.remove_cb(ProgressCallback)
        learn.logger = lambda *_: None
        return learn

    return make


def weights(learn):
    return {name: value.detach().clone() for name, value in learn.model.state_dict().items()}


class Watch(Callback):
    """Another callback: what it sees of each batch."""

    order = 70

    def __init__(self):
        self.cancelled, self.steps, self.hypers, self.losses = [], 0, [], []

    def after_cancel_step(self):
        self.cancelled.append(self.learn.train_iter)

    def after_step(self):
        self.steps += 1
        self.hypers.append(copy.copy(self.learn.opt.hypers[-1]))
        self.losses.append(self.learn.loss.item())


class Poison(Callback):
    """Makes the loss of some batches inf; the batch numbers count on over epochs."""

    def __init__(self, *batches):
        self.batches = batches

    def after_loss(self):
        if self.learn.training and self.learn.train_iter in self.batches:
            self.learn.loss_grad = self.learn.loss_grad * math.inf


@pytest.mark.parametrize("wd_bn_bias", [True, False])
@pytest.mark.parametrize("decouple_wd", [True, False])
def test_opt_func_trains_as_fastais_adam(learner, decouple_wd, wd_bn_bias):
    trained = []
    for opt_func in (FastaisAdam, gf.Adam):
        learn = learner(partial(opt_func, decouple_wd=decouple_wd), splitter=two_groups, wd=0.3, wd_bn_bias=wd_bn_bias)
        learn.fit_one_cycle(2, slice(1e-3, 1e-2))
        trained.append(weights(learn))
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)


def test_weight_decay_of_norms_and_biases_is_the_learners_choice(learner):
    """An OptimWrapper decays them whatever the learner says: were our groups ignored, the test above could not tell."""
    decayed = {}
    for chosen in (True, False):
        learn = learner(gf.Adam, wd=10.0, wd_bn_bias=chosen)
        learn.fit(1, 1e-2)
        decayed[chosen] = weights(learn)
    assert decayed[True]["0.1.weight"].mean() < decayed[False]["0.1.weight"].mean() - 0.1
    assert learn.opt.hypers[0]["wd"] == 10.0
    assert len(learn.opt.hypers) == len(learn.opt.param_lists) == 1
    assert {id(param) for param in learn.opt.param_lists[0]} == {id(param) for param in learn.model.parameters()}


def test_opt_func_has_fastais_defaults():
    ours, theirs = (inspect.signature(adam).parameters for adam in (gf.Adam, FastaisAdam))
    assert {name: ours[name].default for name in theirs} == {name: theirs[name].default for name in theirs}


def test_parameters_have_the_models_names_even_if_the_callback_comes_late(learner):
    learn = learner(gf.Adam)
    learn.fit(1, 1e-2)
    assert learn.opt.opt.stats.names[0] == "param_0"
    learn.fit(1, 1e-2, cbs=[gf.GradOps()])
    assert learn.opt.opt.stats.names == ("0.0.weight", "1.1.weight", "0.1.weight", "0.1.bias", "1.1.bias")


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
    learn = learner(cbs=[callback(precision), Watch()])
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
    learn = learner(cbs=[callback(precision), Poison(1, 3, 4), Watch()])
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


def test_learning_rate_and_momentum_are_those_of_every_batch(learner):
    seen = []
    for opt_func, callbacks in ((FastaisAdam, []), (FastaisAdam, [gf.GradOps()]), (gf.Adam, [])):
        learn = learner(opt_func, cbs=[*callbacks, Watch()])
        learn.fit_one_cycle(2, 1e-2)
        seen.append([(hyper["lr"], hyper["mom"]) for hyper in learn.watch.hypers])
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == 12


@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lr_find_leaks_nothing(learner, precision, trained_before):
    learn = learner(cbs=[callback(precision, max_norm=1.0), Poison(2)])
    if trained_before:
        learn.fit(1, 1e-2)
    learn.fit(0)  # upgrades the optimizer
    before = weights(learn), copy.deepcopy(learn.opt.state_dict())
    learn.lr_find(num_it=8, show_plot=False, suggest_funcs=None)
    after = weights(learn), learn.opt.state_dict()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    for group, old in zip(after[1]["param_groups"], before[1]["param_groups"], strict=True):
        assert group == old
    torch.testing.assert_close(after[1]["state"], before[1]["state"], rtol=0, atol=0)
    if precision == "fp16":
        assert after[1]["param_groups"][0]["gradops_loss_scale"] == (512.0 if trained_before else 1024.0)


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


@pytest.mark.parametrize("rival", [MixedPrecision(), GradientClip()], ids=repr)
def test_callbacks_that_it_replaces_are_refused(learner, rival):
    learn = learner(cbs=[gf.GradOps(), rival])
    with pytest.raises(ValueError, match=f"{rival!r} does: remove that callback"):
        learn.fit(1)


def test_another_optimizer_is_refused_by_name(learner):
    from fastai.optimizer import SGD

    with pytest.raises(TypeError, match="SGD"):
        learner(SGD, cbs=[gf.GradOps()]).fit(1)


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


@pytest.mark.parametrize("opt_func", [FastaisAdam, gf.Adam])
def test_saved_and_loaded_learner_continues_bitwise(learner, opt_func):
    def fits(*precedings):
        learn = learner(opt_func, cbs=[callback("fp16", max_norm=1.0), Poison(1)])
        for preceding in precedings:
            preceding(learn)
        learn.fit(1, 1e-2)
        return weights(learn), learn.opt.state_dict()["param_groups"][0]["gradops_loss_scale"]

    whole = fits(lambda learn: learn.fit(1, 1e-2), lambda learn: learn.save("half"))
    resumed = fits(lambda learn: learn.fit(0), lambda learn: learn.load("half"))
    assert whole[1] == resumed[1] == 256.0
    assert all(torch.equal(whole[0][name], resumed[0][name]) for name in whole[0])


def test_exported_learner_predicts_and_the_original_trains_on(learner, tmp_path):
    learn = learner(cbs=[gf.GradOps("bf16", max_norm=1.0)])
    learn.fit(1, 1e-2)
    learn.export()
    again = load_learner(tmp_path / "export.pkl")
    batch = torch.randn(2, 1, 6, 6)
    torch.testing.assert_close(again.model(batch), learn.model.eval()(batch))
    learn.fit(1, 1e-2)
    assert int(learn.opt.opt.stats.steps_taken) == 12


def test_frozen_groups_stay_as_they_are_but_for_their_norms(learner):
    trained = []
    for callbacks in ([], [gf.GradOps()]):
        learn = learner(splitter=two_groups, cbs=callbacks)
        learn.freeze()
        learn.fit(1, 1e-2)
        frozen = weights(learn)
        assert torch.equal(frozen["0.0.weight"], network()[0][0].weight)
        assert not torch.equal(frozen["0.1.weight"], network()[0][1].weight)
        learn.unfreeze()
        learn.fit(1, slice(1e-3, 1e-2))
        trained.append((frozen, weights(learn)))
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)


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
    assert not learn.opt.opt._watchers


def test_recorder_without_our_optimizer_is_refused(learner):
    with pytest.raises(TypeError, match="GradOps"):
        learner(cbs=[gf.StepRecorder()]).fit(1)


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


def test_states_cleared_by_fastai_start_anew(learner):
    learn = learner(gf.Adam)
    learn.fit(1, 1e-2)
    learn.opt.clear_state()
    learn.fit(1, 1e-2)
    steps = {float(state["step"]) for state in learn.opt.opt.state.values()}
    assert steps == {6.0}
