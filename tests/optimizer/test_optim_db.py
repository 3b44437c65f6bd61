"""torch's own optimizer database runs against gradops: inputs, error inputs and step behaviours."""

import copy
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
from rules import TORCHS as OURS
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db
from torch.testing._internal.common_utils import TestCase

import gradops

INFOS = [info for info in optim_db if info.optim_cls in OURS]
INPUTS = [(info, item) for info in INFOS for item in info.optim_inputs_func(device="cpu")]
ERRORS = [(info, item) for info in INFOS for item in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)]
FLAVOURS = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
FLAVOURED = [
    (info, item, flavour)
    for info, item in INPUTS
    for flavour in FLAVOURS
    if "fused" not in flavour or "fused" in info.supported_impls
]

assert_equal = TestCase().assertEqual  # compares nested dicts of tensors

every_info = pytest.mark.parametrize("info", INFOS, ids=[info.optim_cls.__name__ for info in INFOS])
every_input = pytest.mark.parametrize(
    ("info", "item"), INPUTS, ids=[f"{info.optim_cls.__name__}-{item.desc}" for info, item in INPUTS]
)


def test_database_has_all_optimizers_and_their_inputs():
    assert {info.optim_cls for info in INFOS} == OURS.keys()
    for info in INFOS:
        assert len([item for owner, item in INPUTS if owner is info]) >= 5
        assert len([item for owner, item in ERRORS if owner is info]) >= 3


def build(info, item, params, wrapped=False, **extra):
    kwargs = {**copy.deepcopy(item.kwargs), **extra}
    if wrapped:
        return gradops.wrap(info.optim_cls(params, **kwargs))
    return OURS[info.optim_cls](params, **kwargs)


def regression(optimizer_of, device, steps=10):
    """torch's forloop_goes_right_direction: the loss of a small least squares problem falls."""
    torch.manual_seed(0)
    weight = torch.randn(10, 5, device=device).requires_grad_()
    bias = torch.randn(10, device=device).requires_grad_()
    data = torch.randn(5, device=device)
    optimizer, losses = optimizer_of([weight, bias]), []

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(data) + bias).pow(2).sum()
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(optimizer.step(closure).item())
    return losses, weight, bias, optimizer


@every_input
@pytest.mark.parametrize("wrapped", [False, True])
def test_loss_goes_in_the_right_direction(info, item, wrapped, device):
    losses, *_ = regression(lambda params: build(info, item, params, wrapped), device)
    assert losses[-1] > losses[0] if item.kwargs.get("maximize") else losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("info", "item", "flavour"),
    FLAVOURED,
    ids=[f"{flavour}-{info.optim_cls.__name__}-{item.desc}" for info, item, flavour in FLAVOURED],
)
def test_steps_equal_every_flavour_of_torch(info, item, flavour, device):
    if flavour.get("fused") and "fused" not in info.supported_impls:
        pytest.skip(f"torch has no fused {info.optim_cls.__name__}")
    ours = regression(lambda params: build(info, item, params, **flavour), device)
    theirs = regression(lambda params: info.optim_cls(params, **copy.deepcopy(item.kwargs), **flavour), device)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    torch.testing.assert_close(ours[1:3], theirs[1:3], rtol=1e-5, atol=1e-6)
    for mine, torchs in zip(ours[3].state.values(), map(theirs[3].state.__getitem__, theirs[1:3]), strict=True):
        assert mine.keys() == torchs.keys() | {"step"}
        for name, value in torchs.items():
            # Of the largest: RMSprop's momentum is a sum of quotients, of which the smallest gradients' are inexact.
            torch.testing.assert_close(mine[name], value, rtol=1.3e-6, atol=1e-5 * max(1.0, value.abs().max().item()))
        assert mine["step"].item() == torchs.get("step", torch.tensor(10.0)).item()


@every_input
def test_schedulers_of_the_database_run(info, item, device):
    for builders in info.scheduler_inputs:
        torch.manual_seed(0)
        param = torch.randn(5, device=device).requires_grad_()
        optimizer = build(info, item, [param])
        schedulers = [builder(optimizer) for builder in builders]
        for _ in range(4):
            param.grad = torch.randn_like(param)
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step(1.0) if isinstance(
                    scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau
                ) else scheduler.step()
        assert int(optimizer.state[param]["step"]) == 4


@pytest.mark.parametrize(
    ("info", "error"), ERRORS, ids=[f"{i.optim_cls.__name__}-{e.optimizer_error_input.desc}" for i, e in ERRORS]
)
def test_error_inputs_raise_torchs_errors(info, error):
    item = error.optimizer_error_input
    params = item.params if item.params is not None else [torch.randn(2, 2).requires_grad_()]
    assert error.error_on == OptimizerErrorEnum.CONSTRUCTION_ERROR
    if issubclass(error.error_type, Warning):
        # Torch warns of a duplicate; here it is refused, after the same warning. Of a set it warns from 2.15 on.
        duplicate = len(set(params)) < len(list(params))
        refused = pytest.raises(ValueError, match=r"(?i)duplicate|twice|more than once") if duplicate else nullcontext()
        with pytest.warns(error.error_type, match=error.error_regex), refused:
            OURS[info.optim_cls](params, **item.kwargs)
    else:
        with pytest.raises(error.error_type, match=error.error_regex):
            OURS[info.optim_cls](params, **item.kwargs)


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("params", [set, frozenset, dict.fromkeys], ids=["set", "frozenset", "dict"])
def test_containers_without_an_order_are_met_as_torch_meets_them(cls, params):
    """A bare set is silent up to torch 2.14, and warned of from 2.15 on."""
    said = []
    for maker in (cls, OURS[cls]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            maker(params([torch.ones(2).requires_grad_()]))
        said.append([(warning.category, str(warning.message)) for warning in caught])
    assert said[0] == said[1]


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("params", [set, frozenset, list, tuple, dict.fromkeys], ids=lambda kind: kind.__name__)
def test_torch_is_given_the_very_container(cls, params, monkeypatch):
    """So that it warns of a bare set as it does for its own classes, whichever release it is."""
    seen, torchs = [], torch.optim.Optimizer.__init__

    def warning_of_sets(self, params, defaults):
        seen.append(params)
        if isinstance(params, (set, frozenset)):
            warnings.warn("a bare unordered set", FutureWarning, stacklevel=2)
        torchs(self, params, defaults)

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", warning_of_sets)
    given = params([torch.ones(2).requires_grad_()])
    warned = pytest.warns(FutureWarning, match="unordered") if isinstance(given, (set, frozenset)) else nullcontext()
    with warned:
        OURS[cls](given)
    assert seen[0] is given


@pytest.mark.parametrize("cls", OURS)
def test_set_inside_a_group_is_refused_as_torch_refuses_it(cls):
    said = []
    for maker in (cls, OURS[cls]):
        with pytest.raises(TypeError) as caught:
            maker([{"params": {torch.ones(2).requires_grad_()}}])
        said.append(str(caught.value))
    assert said[0] == said[1]


@every_input
def test_step_is_a_no_op_without_gradients(info, item, device):
    params = [torch.randn(2, 3, device=device).requires_grad_() for _ in range(2)]
    optimizer = build(info, item, params)
    before = [param.clone() for param in params]
    for param in params:
        param.grad = None
    optimizer.step()
    assert all(torch.equal(param, kept) for param, kept in zip(params, before, strict=True))


@every_input
def test_step_of_zero_gradients_equals_torchs(info, item, device):
    results = []
    for make in (
        lambda params: build(info, item, params),
        lambda params: info.optim_cls(params, **copy.deepcopy(item.kwargs)),
    ):
        torch.manual_seed(0)
        param = torch.randn(2, 3, device=device).requires_grad_()
        optimizer = make([param])
        for _ in range(2):
            param.grad = torch.zeros_like(param)
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


@every_input
def test_state_dict_round_trip_gives_the_same_next_step(info, item, device):
    _, weight, bias, optimizer = regression(lambda params: build(info, item, params), device, steps=3)
    twins = [param.detach().clone().requires_grad_() for param in (weight, bias)]
    other = build(info, item, twins)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for param, twin in zip((weight, bias), twins, strict=True):
        param.grad = torch.randn_like(param)
        twin.grad = param.grad.clone()
    optimizer.step(), other.step()
    assert torch.equal(weight, twins[0])
    assert torch.equal(bias, twins[1])


@every_input
def test_named_parameters_keep_their_names_in_a_state_dict(info, item):
    weight = torch.randn(2, 3).requires_grad_()
    optimizer = build(info, item, [("weight", weight)])
    assert optimizer.param_groups[0]["param_names"] == ["weight"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["weight"]
    assert optimizer.stats.names == ["weight"] or optimizer.stats.names == ("weight",)


@every_input
def test_deepcopy_and_pickle_of_every_input(info, item, device):
    *_, optimizer = regression(lambda params: build(info, item, params), device, steps=2)
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(twin) is type(optimizer)
        assert_equal(twin.state_dict(), optimizer.state_dict())


@every_info
def test_load_nontensor_step_as_old_checkpoints_have_it(info, device):
    *_, optimizer = regression(lambda params: OURS[info.optim_cls](params), device, steps=2)
    state = copy.deepcopy(optimizer.state_dict())
    for entry in state["state"].values():
        entry.update((name, entry[name].item()) for name in optimizer.rule.number_names)
    optimizer.load_state_dict(state)
    optimizer.step()
    assert all(int(entry["step"]) == 3 for entry in optimizer.state.values())


@every_info
def test_old_pickles_without_newer_flags_load(info, device):
    """torch's test_non_empty_state / setstate: flags added later are filled in with their defaults."""
    *_, optimizer = regression(lambda params: OURS[info.optim_cls](params), device, steps=2)
    saved = optimizer.state_dict()
    flags = saved["param_groups"][0].keys() & info.not_og_supported_flags
    for group in saved["param_groups"]:
        for flag in flags:
            group.pop(flag)
    optimizer.load_state_dict(saved)
    optimizer.step()
    assert len(flags) >= 3
    assert all(flag in group for group in optimizer.param_groups for flag in flags)


@every_info
def test_state_dict_hooks_of_the_database_order(info, device):
    param = torch.ones(2, device=device).requires_grad_()
    optimizer, calls = OURS[info.optim_cls]([param]), []
    optimizer.register_state_dict_post_hook(lambda opt, state, calls=calls: calls.append("second"))
    optimizer.register_state_dict_post_hook(lambda opt, state, calls=calls: calls.append("first"), prepend=True)
    optimizer.register_load_state_dict_pre_hook(lambda opt, state, calls=calls: calls.append("load"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["first", "second", "load"]


@every_input
def test_grads_are_never_reallocated_by_a_step(info, item, device):
    """torch's test_grads_are_never_inplaced_into."""
    param = torch.randn(5, 5, device=device).requires_grad_()
    optimizer = build(info, item, [param])
    param.grad = torch.randn_like(param)
    grad, version, kept = param.grad, param.grad._version, param.grad.clone()
    optimizer.step()
    assert param.grad is grad
    assert grad._version == version
    assert torch.equal(grad, kept)


@every_input
def test_no_warning_is_given_by_an_ordinary_run(info, item, device):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regression(lambda params: build(info, item, params), device, steps=2)
