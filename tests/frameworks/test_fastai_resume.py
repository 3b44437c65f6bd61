"""A learner that goes on from a file goes on with Adam's state, whoever wrote it: with GradOps or without."""

import warnings
from functools import partial

import pytest
import torch

pytest.importorskip("fastai")

from fastai.optimizer import Adam as FastaisAdam
from fastai.optimizer import OptimWrapper
from learners import CLOSE, Poison, grad_ops, two_groups, weights

import gradops
from gradops import fastai as gf


def plain():
    return {"opt_func": FastaisAdam}


def with_callback():
    return {"opt_func": FastaisAdam, "cbs": [grad_ops("fp32")]}


def with_opt_func():
    return {"opt_func": gf.Adam}


def torchs():
    return {"opt_func": partial(OptimWrapper, opt=torch.optim.AdamW, eps=1e-4)}


def torchs_with_callback():
    return {**torchs(), "cbs": [grad_ops("fp32")]}


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


@pytest.mark.parametrize("fitted", [False, True], ids=["fresh", "fitted before"])
@pytest.mark.parametrize("loaded_by", [torchs, torchs_with_callback])
@pytest.mark.parametrize("saved_by", [torchs, torchs_with_callback])
def test_resumed_run_of_a_torch_optimizer_equals_the_uninterrupted_one(learner, saved_by, loaded_by, fitted):
    """In an OptimWrapper, whose format is torch's."""
    rates = slice(1e-3, 1e-2)
    whole = learner(**torchs(), splitter=two_groups)
    for _ in range(2):
        whole.fit(1, rates)
    first = learner(**saved_by(), splitter=two_groups)
    first.fit(1, rates)
    first.save("half")
    second = learner(**loaded_by(), splitter=two_groups)
    if fitted:
        second.fit(1, 1e-1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Could not load the optimizer state")
        second.load("half")
    second.fit(1, rates)
    torch.testing.assert_close(weights(second), weights(whole), **CLOSE)


@pytest.mark.parametrize("loaded_by", KINDS)
@pytest.mark.parametrize("saved_by", KINDS)
def test_frozen_groups_resume_as_in_fastai(learner, saved_by, loaded_by):
    trained = []
    for before, after in ((plain, plain), (saved_by, loaded_by)):
        first = learner(**before(), splitter=two_groups)
        first.freeze()
        first.fit(1, 1e-2)
        first.save("half")
        second = learner(**after(), splitter=two_groups)
        second.freeze()
        second.load("half")
        second.fit(1, 1e-2)
        second.save("more")
        second.unfreeze()
        second.load("more")
        second.fit(1, slice(1e-3, 1e-2))
        trained.append(weights(second))
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)


@pytest.mark.parametrize("fitted", [False, True], ids=["fresh", "fitted before"])
@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("loaded_by", KINDS)
def test_the_files_choice_of_what_decays_wins_over_the_learners_as_in_fastai(learner, loaded_by, saved, fitted):
    """`wd_bn_bias` is a mark of each parameter's state, and so comes with the file."""
    trained = []
    for kind in (plain, loaded_by):
        first = learner(**plain(), wd=3.0, wd_bn_bias=saved)
        first.fit(1, 1e-2)
        first.save("half")
        second = learner(**kind(), wd=3.0, wd_bn_bias=not saved)
        if fitted:
            second.fit(1, 1e-1)
        second.load("half")
        second.fit(1, 1e-2)
        second.save("more")
        third = learner(**plain(), wd=3.0, wd_bn_bias=not saved)
        third.load("more")
        third.fit(1, 1e-2)
        trained.append([weights(second), weights(third)])
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)


def test_parameters_keep_their_names_when_they_change_groups(learner):
    first = learner(wd_bn_bias=True)
    first.fit(1, 1e-2)
    first.save("half")
    second = learner(cbs=[grad_ops("fp32")])
    second.fit(1, 1e-2)
    second.load("half")
    second.fit(1, 1e-2)
    names = {param: name for name, param in second.model.named_parameters()}
    params = [param for group in second.opt.opt.param_groups for param in group["params"]]
    assert second.opt.opt.stats.names == tuple(names[param] for param in params)
    assert len(second.opt.opt.param_groups) == 1


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


@pytest.mark.parametrize(
    ("opt_func", "settings"),
    [
        (FastaisAdam, {"guard": gradops.SpikeGuard()}),
        (FastaisAdam, {"moments_dtype": torch.bfloat16}),
        (FastaisAdam, {"max_relative_step": 0.1}),
        (partial(gf.Adam, amsgrad=True), {}),
        (torchs()["opt_func"], {"max_norm": 1.0}),
    ],
    ids=["guard", "bfloat16 moments", "cap", "amsgrad", "torch"],
)
def test_run_that_is_saved_and_loaded_twice_goes_on_bitwise(learner, opt_func, settings):
    def make():
        return learner(opt_func, cbs=[grad_ops("fp16", **settings), Poison(1)])

    whole = make()
    whole.fit(1, 1e-2)
    whole.save("half")
    whole.save("half")
    whole.fit(1, 1e-2)
    resumed = make()
    resumed.load("half")
    resumed.save("again")
    resumed.load("again")
    resumed.fit(1, 1e-2)
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(resumed).items())
    assert resumed.opt.opt.stats.loss_scale == whole.opt.opt.stats.loss_scale == 256.0
    assert int(resumed.opt.opt.stats.steps_skipped) == 2


def test_export_leaves_the_run_bitwise_as_it_is(learner):
    trained = []
    for exports in (False, True):
        learn = learner(splitter=two_groups, cbs=[grad_ops("fp16", max_norm=1.0), Poison(1)])
        learn.fit(1, 1e-2)
        if exports:
            learn.export()
        learn.fit(1, 1e-2)
        trained.append(learn)
    whole, exported = trained
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(exported).items())
    for name in ("loss_scale", "steps_taken", "steps_skipped"):
        assert getattr(exported.opt.opt.stats, name) == getattr(whole.opt.opt.stats, name)


def test_without_opt_only_the_weights_come(learner):
    first = learner(**with_callback())
    first.fit(1, 1e-2)
    first.save("without", with_opt=False)
    first.save("with")
    for name in ("without", "with"):
        second = learner(**with_callback())
        second.load(name, with_opt=False)
        assert all(torch.equal(weights(first)[name], value) for name, value in weights(second).items())
        second.fit(1, 1e-2)
        assert {state["step"] for state in moments(second)} == {6}


def test_steps_of_plain_fastai_count_when_gradops_goes_on(learner):
    kinds = [with_callback, plain, with_callback]
    for index, kind in enumerate(kinds):
        learn = learner(**kind())
        if index:
            learn.load("last")
        learn.fit(1, 1e-2)
        learn.save("last")
    assert int(learn.opt.opt.stats.steps_taken) == 18
