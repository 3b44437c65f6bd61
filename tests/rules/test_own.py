"""Optimizers whose classes torch does not have."""

import copy
import math
import pickle

import pytest
import torch
from beside import assert_bitwise, snapshot

import gradops
from gradops.optim.own import OwnOptimizer
from gradops.optim.wrap import rule_for
from rules import CLASSES, torchs

OWN = [cls for cls in CLASSES if torchs(cls) is None]
WRONG = {
    gradops.Lion: [
        ({"lr": -1.0}, ValueError, "lr must be finite and not negative, got -1.0"),
        ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast'"),
        ({"betas": 0.9}, TypeError, "betas must be two numbers, got 0.9"),
        ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be at least 0 and below 1, got 1.0"),
        ({"betas": (None, 0.9)}, TypeError, r"betas\[0\] must be a number, got None"),
        ({"weight_decay": math.nan}, ValueError, "weight_decay must be finite and not negative, got nan"),
        ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
    ],
    gradops.LARS: [
        ({"lr": math.inf}, ValueError, "lr must be finite and not negative, got inf"),
        ({"momentum": -0.9}, ValueError, "momentum must be finite and not negative, got -0.9"),
        ({"trust_coeff": "x"}, TypeError, "trust_coeff must be a number, got 'x'"),
        ({"eps": -1e-8}, ValueError, "eps must be finite and not negative, got -1e-08"),
        ({"trust_clip": "no"}, TypeError, "trust_clip must be True or False, got 'no'"),
        ({"nesterov": True}, ValueError, "nesterov needs a momentum that is not 0 and a dampening of 0"),
        ({"nesterov": True, "momentum": 0.9, "dampening": 0.1}, ValueError, "nesterov needs a momentum"),
        ({"clip_mode": "agc", "max_norm": 0.01}, ValueError, "LARS scales each tensor's step by the L2 norm"),
        ({"norm_type": 1.0}, ValueError, "norm_type must be 2, got 1.0"),
    ],
}
EVERY_WRONG = [pytest.param(cls, *wrong, id=f"{cls.__name__}-{wrong[0]}") for cls, of in WRONG.items() for wrong in of]

every_class = pytest.mark.parametrize("cls", OWN)


def one(device="cpu"):
    param = torch.ones(3, device=device).requires_grad_()
    param.grad = torch.ones_like(param)
    return param


def test_every_class_is_tested():
    assert set(OWN) == set(WRONG)
    assert all(issubclass(cls, OwnOptimizer) for cls in OWN)


@pytest.mark.parametrize(("cls", "options", "error", "said"), EVERY_WRONG)
def test_wrong_arguments_are_refused_by_name(cls, options, error, said):
    with pytest.raises(error, match=said):
        cls([one()], **options)
    if options.keys() <= cls.starts.keys():
        with pytest.raises(error, match=said):
            cls([{"params": [one()], **options}])


@pytest.mark.parametrize(("cls", "options", "error", "said"), EVERY_WRONG)
def test_a_group_that_is_added_is_checked_before_anything_changes(cls, options, error, said):
    if not options.keys() <= cls.starts.keys():
        pytest.skip("a setting, which is of no group")
    optimizer = cls([one()])
    with pytest.raises(error, match=said):
        optimizer.add_param_group({"params": [one()], **options})
    assert len(optimizer.param_groups) == 1
    optimizer.step()


@every_class
def test_a_misspelt_keyword_is_refused_by_the_name_of_the_class(cls):
    with pytest.raises(TypeError, match=rf"{cls.__name__}.__init__\(\) got an unexpected keyword argument 'max_nrm'"):
        cls([one()], max_nrm=1.0)


@every_class
def test_unwrap_is_refused_and_the_optimizer_goes_on(cls, device):
    optimizer = cls([one(device)], max_norm=1.0)
    optimizer.step()
    before = snapshot(optimizer)
    with pytest.raises(TypeError, match=f"torch has no {cls.__name__}; keep this one"):
        gradops.unwrap(optimizer)
    assert (type(optimizer), optimizer.max_norm) == (cls, 1.0)
    assert_bitwise(snapshot(optimizer), before)
    optimizer.step()
    assert int(optimizer.stats.steps_taken) == 2


@every_class
def test_wrap_leaves_it_alone_and_its_rule_is_known(cls):
    optimizer = cls([one()], max_norm=1.0)
    assert gradops.wrap(optimizer, max_norm=1.0) is optimizer
    assert rule_for(optimizer) is cls.rule
    with pytest.raises(ValueError, match=r"wrapped already with max_norm=1\.0"):
        gradops.wrap(optimizer, max_norm=2.0)


@every_class
def test_a_subclass_keeps_its_own_arguments(cls, device):
    class Mine(cls):
        def __init__(self, params, tempo="andante"):
            super().__init__(params, lr=0.5)
            self.tempo = tempo

    optimizer = Mine([one(device)], tempo="allegro")
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    assert (optimizer.tempo, twin.param_groups[0]["lr"]) == ("allegro", 0.5)


@every_class
def test_an_optimizer_without_a_step_is_pickled(cls):
    assert type(pickle.loads(pickle.dumps(cls([one()])))) is cls


def test_lions_step_where_nothing_points_anywhere_is_none(device):
    """sign(0) is 0: without a gradient and momentum a weight stays, but for its decay."""
    param = torch.full((3,), 2.0, device=device).requires_grad_()
    param.grad = torch.tensor([0.0, 1.0, -1.0], device=device)
    gradops.Lion([param], lr=0.125, weight_decay=0.5).step()
    torch.testing.assert_close(param.detach().cpu(), torch.tensor([1.875, 1.75, 2.0]))
