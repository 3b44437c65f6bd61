"""Groups, parameters and state may be in whatever containers torch's own step takes; those hold no Python surprises."""

import copy
from collections import OrderedDict, UserDict, UserList, defaultdict
from types import MappingProxyType

import pytest
import torch
from beside import assert_bitwise, params_of, snapshot

import gradops

pytestmark = pytest.mark.usefixtures("backend")


def make(device, max_norm=1.0, **options):
    torch.manual_seed(3)
    params = [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in ((4, 3), (5,), (2, 2))]
    groups = [
        {"params": [("weight", params[0]), ("bias", params[1])]},
        {"params": [("head", params[2])], "weight_decay": 0.5},
    ]
    return gradops.AdamW(groups, lr=0.1, max_norm=max_norm, **options)


def backward(optimizer, step):
    generator = torch.Generator().manual_seed(step)
    for param in params_of(optimizer):
        param.grad = torch.randn(param.shape, generator=generator).to(param.device)


def change_params(kind):
    def change(optimizer):
        for group in optimizer.param_groups:
            group["params"] = kind(group["params"])

    return change


def change_groups(kind):
    def change(optimizer):
        optimizer.param_groups = kind(optimizer.param_groups)

    return change


def change_each_group(kind):
    def change(optimizer):
        optimizer.param_groups[:] = [kind(group) for group in optimizer.param_groups]

    return change


def change_state(kind):
    def change(optimizer):
        optimizer.state = kind(optimizer.state)

    return change


def change_each_state(kind):
    def change(optimizer):
        for param in list(optimizer.state):
            optimizer.state[param] = kind(optimizer.state[param])

    return change


def default_dict(values):
    return defaultdict(dict, values)


def something_of_the_users_own(optimizer):
    optimizer.state["note"] = 5


CHANGES = {
    **{f"params {kind.__name__}": change_params(kind) for kind in (tuple, torch.nn.ParameterList, UserList)},
    **{f"param_groups {kind.__name__}": change_groups(kind) for kind in (tuple, UserList)},
    **{f"group {kind.__name__}": change_each_group(kind) for kind in (OrderedDict, UserDict, MappingProxyType)},
    **{f"state {kind.__name__}": change_state(kind) for kind in (dict, OrderedDict, UserDict, default_dict)},
    **{f"state entry {kind.__name__}": change_each_state(kind) for kind in (OrderedDict, UserDict, default_dict)},
    "state's own": something_of_the_users_own,
}


@pytest.mark.parametrize("when", ["before the first step", "between two steps"])
@pytest.mark.parametrize("name", CHANGES)
def test_containers_of_any_kind_step_as_lists_and_dicts_do(name, when, device):
    optimizer, usual = make(device), make(device)
    for step in range(4):
        if step == (when == "between two steps"):
            CHANGES[name](optimizer)
        for each in (optimizer, usual):
            backward(each, step)
            each.step()
    assert int(optimizer.stats.steps_taken) == 4
    assert_bitwise(snapshot(optimizer), snapshot(usual))
    plain = torch.optim.AdamW(params_of(make(device)), lr=0.1)
    for step in range(2):
        backward(plain, step)
        plain.step()
        if step == 0:
            CHANGES[name](plain)  # torch takes them too


@pytest.mark.parametrize("name", [name for name in CHANGES if "groups" not in name and "proxy" not in name])
def test_state_dicts_and_settings_work_with_containers_of_any_kind(name, device):
    optimizer = make(device)
    backward(optimizer, 0)
    optimizer.step()
    CHANGES[name](optimizer)
    optimizer.max_norm, optimizer.moments_dtype = 0.5, torch.bfloat16
    backward(optimizer, 1)
    optimizer.step()
    assert all(optimizer.state[param]["exp_avg"].dtype == torch.bfloat16 for param in params_of(optimizer))
    if name in ("state's own", "state entry UserDict"):
        return  # torch's own loader takes dicts only
    fresh = make(device, max_norm=0.5, moments_dtype=torch.bfloat16)
    for mine, theirs in zip(params_of(fresh), params_of(optimizer), strict=True):
        mine.data.copy_(theirs)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each in (fresh, optimizer):
        backward(each, 2)
        each.step()
    assert_bitwise(snapshot(fresh), snapshot(optimizer))


WRONG = {
    "None among the params": (
        lambda o, p: o.param_groups[0]["params"].append(None),
        "'params' of a param_group holds a NoneType; expected tensors|'params' of param_group 0 holds a NoneType",
    ),
    "params a number": (
        lambda o, p: o.param_groups[0].update(params=3),
        "'?params.*(sequence|iterable).*|.*not iterable",
    ),
    "state of a parameter": (
        lambda o, p: o.state.__setitem__(p, 5),
        "the state of 'weight' must be a dict or another mapping, got int",
    ),
    "betas a number": (lambda o, p: o.param_groups[0].update(betas=3), "betas must be a|not iterable"),
    "a beta text": (
        lambda o, p: o.param_groups[0].update(betas=(0.9, "near 1")),
        "'betas' of a param_group must be a number",
    ),
    "lr text": (lambda o, p: o.param_groups[0].update(lr="fast"), "'lr' of a param_group must be a number"),
    "weight decay None": (
        lambda o, p: o.param_groups[0].update(weight_decay=None),
        "'weight_decay' of a param_group must be a number",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_container_of_tensors_is_refused_in_words(name, device):
    optimizer = make(device)
    backward(optimizer, 0)
    optimizer.step()
    backward(optimizer, 1)
    change, message = WRONG[name]
    params, taken = [param.detach().clone() for param in params_of(optimizer)], int(optimizer.stats.steps_taken)
    weight = params_of(optimizer)[0]
    change(optimizer, weight)
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.step()
    assert torch.equal(weight, params[0])
    assert int(optimizer.stats.steps_taken) == taken


def test_parameters_added_behind_the_optimizers_back_are_stepped_and_named_by_place(device):
    """Names of a group whose list somebody has edited say nothing any more."""
    optimizer = make(device)
    backward(optimizer, 0)
    optimizer.step()
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(2, device=device)))
    backward(optimizer, 1)
    optimizer.step()
    assert optimizer.stats.names == ("param_0", "param_1", "param_2", "head")
    assert len(optimizer.state) == 4


def test_parameters_taken_out_while_a_setting_changes_are_forgotten(device):
    optimizer, usual = make(device), make(device)
    for each in (optimizer, usual):
        backward(each, 0)
        each.step()
        backward(each, 1)
        for param in params_of(each)[1:]:
            param.grad = None
    del optimizer.param_groups[0]["params"][1], optimizer.param_groups[1]
    optimizer.max_norm = usual.max_norm = 0.5
    for each in (optimizer, usual):
        each.step()
    assert torch.equal(params_of(optimizer)[0], params_of(usual)[0])
    assert optimizer.stats.names == ("param_0",)


def test_state_that_does_not_fit_is_refused_each_time_and_never_overwritten(device):
    optimizer = make(device)
    backward(optimizer, 0)
    optimizer.step()
    state = optimizer.state[params_of(optimizer)[0]]
    state["exp_avg"] = torch.full((7,), 3.0, device=device)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"exp_avg of 'weight' has shape.*clear this parameter's state"):
            optimizer.step()
    assert state["exp_avg"].tolist() == [3.0] * 7
