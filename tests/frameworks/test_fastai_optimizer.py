"""fastai's optimizers and gradops': the `opt_func`, schedules, groups, and what a Learner saves of them."""

import inspect
from functools import partial

import pytest
import torch

pytest.importorskip("fastai")

from fastai.learner import load_learner
from fastai.optimizer import Adam as FastaisAdam
from fastai.optimizer import OptimWrapper
from learners import CLOSE, Poison, Watch, grad_ops, network, two_groups, weights

import gradops
from gradops import fastai as gf


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


def test_learning_rate_and_momentum_are_those_of_every_batch(learner):
    seen = []
    for opt_func, callbacks in ((FastaisAdam, []), (FastaisAdam, [gf.GradOps()]), (gf.Adam, [])):
        learn = learner(opt_func, cbs=[*callbacks, Watch()])
        learn.fit_one_cycle(2, 1e-2)
        seen.append([(hyper["lr"], hyper["mom"]) for hyper in learn.watch.hypers])
    assert seen[0] == seen[1] == seen[2]
    assert len(set(seen[0])) == 12


@pytest.mark.parametrize("opt_func", [FastaisAdam, gf.Adam])
def test_saved_and_loaded_learner_continues_bitwise(learner, opt_func):
    def fits(*precedings):
        learn = learner(opt_func, cbs=[grad_ops("fp16", max_norm=1.0), Poison(1)])
        for preceding in precedings:
            preceding(learn)
        learn.fit(1, 1e-2)
        return weights(learn), learn.opt.state_dict()["hypers"][0]["gradops_loss_scale"]

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


def test_states_cleared_by_fastai_start_anew(learner):
    learn = learner(gf.Adam)
    learn.fit(1, 1e-2)
    learn.opt.clear_state()
    learn.fit(1, 1e-2)
    steps = {float(state["step"]) for state in learn.opt.opt.state.values()}
    assert steps == {6.0}


def test_wrapping_fastais_holder_says_what_to_pass():
    held = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(TypeError, match=r"got OptimWrapper, which holds the optimizer; pass its \.opt$"):
        gradops.wrap(OptimWrapper(opt=held))
