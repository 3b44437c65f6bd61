"""Every optimizer as fastai's `opt_func`, under fastai's names for hyper-parameters, and in place of fastai's own."""

import copy
from functools import partial

import pytest
import torch

pytest.importorskip("fastai")

from fastai.optimizer import SGD as FastaisSGD  # noqa: N811  # a function
from fastai.optimizer import OptimWrapper
from learners import CLOSE, Watch, two_groups, weights

from gradops import fastai as gf
from gradops.optim.classes import classes, torchs_class

EVERY = pytest.mark.parametrize("cls", classes().values(), ids=classes())
RATE = 1e-2


def opt_func(cls):
    return partial(gf.of_class, cls, **({"mom": 0.9} if "momentum" in cls.rule.hyper else {}))


def cycle(learn):
    """As fastai schedules it: the momentum only where there is one."""
    if learn.opt is None:
        learn.create_opt()
    if "mom" in learn.opt.hypers[0]:
        learn.fit_one_cycle(2, slice(RATE / 10, RATE))
    else:
        learn.fit(2, slice(RATE / 10, RATE))
    return learn


@EVERY
def test_trains_as_torchs_in_fastais_wrapper(learner, cls):
    torchs = torchs_class(cls)
    if torchs is None:
        pytest.skip("torch has no such optimizer")
    options = {"splitter": two_groups, "wd": 0.1, "wd_bn_bias": True}
    torch_func = partial(OptimWrapper, opt=torchs, **({"momentum": 0.9} if "momentum" in cls.rule.hyper else {}))
    theirs = cycle(learner(torch_func, **options))
    for ours in (learner(opt_func(cls), **options), learner(torch_func, cbs=[gf.GradOps()], **options)):
        cycle(ours)
        assert type(ours.opt.opt) is cls
        torch.testing.assert_close(weights(ours), weights(theirs), **CLOSE)


@EVERY
def test_names_are_those_of_gradops(cls):
    made = getattr(gf, cls.__name__)
    assert made is gf.Adam or (made.func, made.args) == (gf.of_class, (cls,))
    assert cls.__name__ in dir(gf)


@EVERY
def test_saved_and_loaded_learner_continues_bitwise(learner, cls):
    whole = learner(opt_func(cls), splitter=two_groups)
    whole.fit(1, RATE)
    whole.save("half")
    whole.fit(1, RATE)
    resumed = learner(opt_func(cls), splitter=two_groups)
    resumed.load("half")
    resumed.fit(1, RATE)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())


@EVERY
def test_lr_find_leaks_nothing(learner, cls):
    learn = learner(opt_func(cls), cbs=[gf.GradOps(max_norm=1.0)])
    learn.fit(1, RATE)
    learn.fit(0)  # sets the learner's own rate
    before = weights(learn), copy.deepcopy(learn.opt.state_dict())
    learn.lr_find(num_it=8, show_plot=False, suggest_funcs=None)
    torch.testing.assert_close(weights(learn), before[0], rtol=0, atol=0)
    assert learn.opt.state_dict()["hypers"] == before[1]["hypers"]
    torch.testing.assert_close(learn.opt.state_dict()["state"], before[1]["state"], rtol=0, atol=0)


def test_a_schedule_of_what_an_optimizer_has_not_changes_nothing(learner):
    learn = learner(gf.SGD, cbs=[Watch()])
    learn.fit_one_cycle(2, RATE)
    assert {hyper["mom"] for hyper in learn.watch.hypers} == {0}
    assert not any("momentum_buffer" in state for state in learn.opt.opt.state.values())


# fastai's SGD, and what it becomes.
SGDS = [{}, {"wd": 0.1}, {"mom": 0.9, "wd": 0.1, "decouple_wd": False}]
KINDS = {
    "fastai's": lambda options: {"opt_func": partial(FastaisSGD, **options)},
    "GradOps": lambda options: {"opt_func": partial(FastaisSGD, **options), "cbs": [gf.GradOps()]},
    "opt_func": lambda options: {"opt_func": partial(gf.SGD, **{k: options[k] for k in options if k != "decouple_wd"})},
}


@pytest.mark.parametrize("options", SGDS, ids=str)
@pytest.mark.parametrize("kind", ["GradOps", "opt_func"])
def test_sgd_trains_as_fastais(learner, kind, options):
    trained = []
    for made in (KINDS["fastai's"](options), KINDS[kind](options)):
        learn = learner(**made, splitter=two_groups)
        learn.fit_one_cycle(2, slice(RATE / 10, RATE))
        trained.append(weights(learn))
    torch.testing.assert_close(trained[1], trained[0], **CLOSE)


@pytest.mark.parametrize("loaded_by", KINDS)
@pytest.mark.parametrize("saved_by", KINDS)
def test_sgd_resumes_from_whoever_wrote_it(learner, saved_by, loaded_by):
    options = SGDS[-1]
    whole = learner(**KINDS["fastai's"](options))
    for _ in range(2):
        whole.fit(1, RATE)
    first = learner(**KINDS[saved_by](options))
    first.fit(1, RATE)
    first.save("half")
    second = learner(**KINDS[loaded_by](options))
    second.load("half")
    second.fit(1, RATE)
    torch.testing.assert_close(weights(second), weights(whole), **CLOSE)


def test_decay_that_sgd_cannot_do_is_refused_and_nothing_has_changed(learner):
    learn = learner(partial(FastaisSGD, mom=0.9), cbs=[gf.GradOps()])
    learn.create_opt()
    before = learn.opt, learn.opt_func
    with pytest.raises(ValueError, match=r"partial\(SGD, mom=0.9, decouple_wd=False\)"):
        learn.fit(1)
    assert (learn.opt, learn.opt_func) == before


def test_an_argument_that_a_class_has_not_is_refused_by_fastais_name():
    with pytest.raises(TypeError, match=r"gradops\.SGD has no alpha or betas\.1, which fastai calls sqr_mom"):
        gf.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1, sqr_mom=0.9)
    with pytest.raises(AttributeError, match="no attribute 'Lookahead'"):
        gf.Lookahead  # noqa: B018
