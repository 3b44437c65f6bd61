"""A learner that goes on from a file goes on with Adam's state, whoever wrote it: with GradOps or without."""

import warnings

import pytest
import torch

pytest.importorskip("fastai")

from fastai.optimizer import Adam as FastaisAdam
from learners import CLOSE, Poison, grad_ops, weights

import gradops
from gradops import fastai as gf


def plain():
    return {"opt_func": FastaisAdam}


def with_callback():
    return {"opt_func": FastaisAdam, "cbs": [grad_ops("fp32")]}


def with_opt_func():
    return {"opt_func": gf.Adam}


KINDS = [plain, with_callback, with_opt_func]


def moments(learn):
    """exp_avg and exp_avg_sq under fastai's names, of every parameter in fastai's order."""
    return [{key: state[key] for key in ("step", "grad_avg", "sqr_avg")} for state in learn.opt.state_dict()["state"]]


@pytest.mark.parametrize("fitted", [False, True], ids=["fresh", "fitted before"])
@pytest.mark.parametrize("loaded_by", KINDS)
@pytest.mark.parametrize("saved_by", KINDS)
@pytest.mark.parametrize("options", [{}, {"wd_bn_bias": True}], ids=["", "wd_bn_bias"])
def test_resumed_run_equals_the_uninterrupted_one(learner, saved_by, loaded_by, fitted, options):
    whole = learner(**plain(), **options)
    for _ in range(2):
        whole.fit(1, 1e-2)
    first = learner(**saved_by(), **options)
    first.fit(1, 1e-2)
    first.save("half")
    second = learner(**loaded_by(), **options)
    if fitted:
        second.fit(1, 1e-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Could not load the optimizer state")
        second.load("half")
    second.fit(1, 1e-2)
    torch.testing.assert_close(weights(second), weights(whole), **CLOSE)
    torch.testing.assert_close(moments(second), moments(whole), **CLOSE)
    assert {state["step"] for state in moments(second)} == {12}


@pytest.mark.parametrize("opt_func", [FastaisAdam, gf.Adam])
def test_fresh_learner_with_the_callback_goes_on_bitwise(learner, opt_func):
    def make():
        return learner(opt_func, cbs=[grad_ops("fp16", max_norm=1.0), Poison(1)])

    whole = make()
    whole.fit(1, 1e-2)
    whole.save("half")
    whole.fit(1, 1e-2)
    resumed = make()
    resumed.load("half")
    resumed.fit(1, 1e-2)
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(resumed).items())
    scalars = [
        {key: value for key, value in learn.opt.state_dict()["hypers"][0].items() if key.startswith("gradops_")}
        for learn in (whole, resumed)
    ]
    assert scalars[0] == scalars[1]
    assert scalars[0]["gradops_loss_scale"] == 256.0
    assert scalars[0]["gradops_steps_skipped"] == 2


def test_hyper_parameters_come_with_the_state(learner):
    first = learner(gf.Adam)
    first.fit(1, 1e-2)
    first.opt.set_hyper("eps", 1e-3)
    first.opt.set_hyper("wd", 0.3)
    first.opt.set_hyper("mom", 0.7)
    first.save("half")
    for kind in KINDS:
        second = learner(**kind())
        second.load("half")
        for name, value in (("eps", 1e-3), ("wd", 0.3), ("mom", 0.7), ("sqr_mom", 0.99)):
            assert [hyper[name] for hyper in second.opt.hypers] == [value] * len(second.opt.hypers)


def test_masters_travel(learner):
    def make():
        learn = learner(gf.Adam, cbs=[gf.GradOps("fp32", master_weights=True)])
        learn.model.bfloat16()
        for loader in learn.dls.loaders:
            loader.dataset.tensors = tuple(tensor.bfloat16() for tensor in loader.dataset.tensors)
        return learn

    first = make()
    first.fit(1, 1e-2)
    first.save("half")
    kept = [state["master"].clone() for state in first.opt.state_dict()["state"]]
    second = make()
    second.load("half")
    assert all(
        torch.equal(state["master"], one) for state, one in zip(second.opt.state_dict()["state"], kept, strict=True)
    )


def test_state_of_other_groups_is_refused_by_numbers(learner):
    first = learner(gf.Adam)
    first.fit(1, 1e-2)
    saved = first.opt.state_dict()
    with pytest.raises(ValueError, match=r"the saved optimizer has 1 groups of 3 parameters, this one \d of \d"):
        first.opt.load_state_dict({"state": saved["state"][:3], "hypers": saved["hypers"][:1]})


def test_files_of_the_first_release_are_read(learner):
    """0.1.0 wrote torch's format."""
    first = learner(gf.Adam)
    first.fit(1, 1e-2)
    second = learner(gf.Adam)
    second.create_opt()
    second.opt.load_state_dict(first.opt.opt.state_dict())
    assert isinstance(second.opt.opt, gradops.AdamW)
    torch.testing.assert_close(moments(second), moments(first), rtol=0, atol=0)
