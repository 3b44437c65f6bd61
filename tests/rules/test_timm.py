"""Lion and LARS beside timm's classes: the same steps, and checkpoints in either direction."""

import copy

import pytest
import torch
from beside import assert_bitwise, params_of, snapshot
from timms import TIMM_CASES, TIMMS

import gradops

pytest.importorskip("timm")

CASES = [pytest.param(cls, options, id=name) for cls, options, name in TIMM_CASES]
SHAPES = [(5, 7), (), (17,)]

every_case = pytest.mark.parametrize(("cls", "options"), CASES)
every_class = pytest.mark.parametrize("cls", TIMMS)


def made(cls, options, device):
    torch.manual_seed(0)
    params = [torch.randn(shape, device=device).requires_grad_() for shape in SHAPES]
    return cls([{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.0}], **copy.deepcopy(options))


def train(optimizer, steps, seed):
    torch.manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            param.grad = torch.randn_like(param)
        optimizer.step()
    return optimizer


def handed_on(optimizer, cls, options, device):
    """An optimizer of the other class that goes on from a checkpoint."""
    other = made(cls, options, device)
    for param, source in zip(params_of(other), params_of(optimizer), strict=True):
        param.data.copy_(source.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


def assert_same(ours, theirs):
    for mine, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=1e-6)
        for key, value in theirs.state[other].items():
            if key != "step":
                torch.testing.assert_close(ours.state[mine][key], value, rtol=2e-5, atol=1e-6)


@every_case
def test_it_steps_as_timms(cls, options, device):
    assert_same(*(train(made(kind, options, device), 5, seed=1) for kind in (cls, TIMMS[cls])))


@every_case
def test_a_checkpoint_of_timms_goes_on_here_and_back_there(cls, options, device):
    theirs = train(made(TIMMS[cls], options, device), 3, seed=1)
    ours = handed_on(theirs, cls, options, device)
    assert_same(train(ours, 2, seed=2), train(theirs, 2, seed=2))
    back = handed_on(ours, TIMMS[cls], options, device)
    assert_same(train(ours, 2, seed=3), train(back, 2, seed=3))


@every_class
def test_a_groups_missing_keys_get_the_signatures_values(cls, device):
    """As of a checkpoint of an older timm, or of another library with the same state."""
    ours = train(made(cls, {"maximize": True}, device), 2, seed=1)
    state = copy.deepcopy(ours.state_dict())
    for group in state["param_groups"]:
        for key in cls.starts.keys() - {*cls.rule.group_keys, "lr"}:
            del group[key]
    other = made(cls, {"maximize": True}, device)
    other.load_state_dict(state)
    wanted = {name: value for name, value in cls.starts.items() if name != "lr"}
    assert all(group.items() >= wanted.items() for group in other.param_groups)
    train(other, 1, seed=2)


@pytest.mark.parametrize("option", ["caution", "corrected_weight_decay"])
def test_what_timms_lion_can_do_besides_is_refused_before_anything_changes(option, device):
    theirs = train(made(TIMMS[gradops.Lion], {option: True}, device), 1, seed=1)
    ours = train(made(gradops.Lion, {}, device), 1, seed=2)
    before = snapshot(ours)
    with pytest.raises(ValueError, match=f"group 0 has {option}=True, which gradops's Lion does not know"):
        ours.load_state_dict(theirs.state_dict())
    assert_bitwise(snapshot(ours), before)
    with pytest.raises(ValueError, match=f"a param_group has {option}=True"):
        gradops.Lion([{"params": [torch.ones(2).requires_grad_()], option: True}])


def test_sgds_checkpoint_is_not_taken_for_lars(device):
    sgd = train(made(torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, device), 1, seed=1)
    with pytest.raises(ValueError, match="no LARS's: its group 0 has no trust_coeff"):
        made(gradops.LARS, {}, device).load_state_dict(sgd.state_dict())


@every_class
def test_wrap_names_the_class_to_build_instead(cls):
    theirs = made(TIMMS[cls], {}, "cpu")
    before = type(theirs)
    with pytest.raises(
        TypeError, match=rf"got timm\.optim\.\w+\.{before.__name__}; build gradops\.{cls.__name__} instead"
    ):
        gradops.wrap(theirs)
    assert type(theirs) is before
