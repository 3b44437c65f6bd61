"""A resumed run is bitwise the uninterrupted one; to and from plain torch within tolerance."""

import copy
import io
import math
import pickle

import pytest
import torch
from beside import assert_bitwise, params_of, snapshot
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import gradops
from gradops.one_pass.checkpoint import CHECKPOINT_KEYS

pytestmark = pytest.mark.usefixtures("backend")

STEPS = 8
SETTINGS = {
    "plain": {},
    "clip": {"max_norm": 0.5, "clip_value": 1.0},
    "cap": {"max_norm": 0.5, "max_relative_step": gradops.RelativeStepCap(0.05, warmup_steps=4)},
    "guard": {"guard": gradops.SpikeGuard("clip", ratio=1.0, warmup_steps=1, history=4)},
    "scaled": {"loss_scale": gradops.DynamicLossScale(init_scale=64.0, growth_interval=2), "max_norm": 0.5},
}


def make(settings, cls=gradops.AdamW, dtype=torch.float32):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(4, 4), torch.nn.Linear(4, 1, bias=False)).to(
        dtype
    )
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.1, "amsgrad": True},
        {"params": list(model[1].parameters()) + list(model[2].parameters()), "lr": 0.01, "weight_decay": 0.2},
    ]
    return model, cls(groups, **settings)


def train(optimizer, steps):
    """Gradients depend on the number of the step alone; one step has an inf, one leaves a parameter out."""
    for step in steps:
        torch.manual_seed(100 + step)
        if getattr(optimizer, "loss_scale", None) is not None:
            optimizer.scale(torch.zeros(()))
        for row, param in enumerate(params_of(optimizer)):
            param.grad = torch.randn_like(param) if (row, step) != (1, 3) else None
        if step == 4:
            params_of(optimizer)[0].grad.view(-1)[0] = math.inf
        optimizer.step()


def carried(optimizer):
    """What ours adds to a checkpoint: scale, tracker, counters."""
    group = optimizer.state_dict()["param_groups"][0]
    return {key: value for key, value in group.items() if key.startswith("gradops_")}


def through_torch_save(optimizer, model, settings):
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other_model, other = make(settings, dtype=next(model.parameters()).dtype)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    return other


def through_pickle(optimizer, model, settings):
    return pickle.loads(pickle.dumps(optimizer))


def through_deepcopy(optimizer, model, settings):
    return copy.deepcopy(optimizer)


def through_load_before_wrap(optimizer, model, settings):
    """The other order: plain torch loads our checkpoint and is wrapped afterwards."""
    other_model, other = make({}, cls=torch.optim.AdamW, dtype=next(model.parameters()).dtype)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return gradops.wrap(other, **settings)


def through_distributed(flatten):
    def through(optimizer, model, settings):
        options = StateDictOptions(flatten_optimizer_state_dict=flatten)
        file = io.BytesIO()
        torch.save((model.state_dict(), get_optimizer_state_dict(model, optimizer, options=options)), file)
        file.seek(0)
        model_state, optimizer_state = torch.load(file, weights_only=False)
        other_model, other = make(settings, dtype=next(model.parameters()).dtype)
        other_model.load_state_dict(model_state)
        set_optimizer_state_dict(other_model, other, optimizer_state, options=options)
        return other

    through.__name__ = f"through_distributed_{'flattened' if flatten else 'nested'}"
    return through


ROUTES = [
    through_torch_save, through_pickle, through_deepcopy, through_load_before_wrap, through_distributed(False),
    through_distributed(True),
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.__name__)
@given(at=st.integers(1, STEPS - 1))
def test_resumed_run_is_bitwise_the_uninterrupted_one(route, settings, at):
    _, whole = make(settings)
    train(whole, range(STEPS))
    model, first = make(settings)
    train(first, range(at))
    resumed = route(first, model, settings)
    assert carried(resumed) == carried(first)
    train(resumed, range(at, STEPS))
    assert_bitwise(snapshot(resumed), snapshot(whole))
    assert carried(resumed) == carried(whole)


HALF_SETTINGS = {
    "cap": SETTINGS["cap"],
    "master": {**SETTINGS["cap"], "master_weights": True},
    "kahan": {**SETTINGS["cap"], "rounding": "kahan"},
}

# Plain torch, on the way through the fourth, rounds the moments to the parameters' dtype.
KEEPING = [route for route in ROUTES if route is not through_load_before_wrap]


@pytest.mark.parametrize("settings", HALF_SETTINGS.values(), ids=HALF_SETTINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("route", KEEPING, ids=lambda route: route.__name__)
def test_half_precision_parameters_resume_bitwise_with_float32_moments(route, dtype, settings):
    _, whole = make(settings, dtype=dtype)
    train(whole, range(STEPS))
    model, first = make(settings, dtype=dtype)
    train(first, range(3))
    resumed = route(first, model, settings)
    assert all(state["exp_avg"].dtype == torch.float32 for state in resumed.state.values())
    train(resumed, range(3, STEPS))
    assert_bitwise(snapshot(resumed), snapshot(whole))


def test_pickled_optimizer_keeps_settings_and_stats():
    _, optimizer = make({**SETTINGS["scaled"], "clip_value": 2.0, "max_relative_step": 0.3, "norm_type": 1.0})
    train(optimizer, range(5))
    for twin in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        assert type(twin) is gradops.AdamW
        assert (twin.max_norm, twin.norm_type, twin.clip_value) == (0.5, 1.0, 2.0)
        assert twin.max_relative_step == optimizer.max_relative_step
        assert twin.loss_scale == optimizer.loss_scale
        for name in (
            "grad_norm",
            "clip_coef",
            "found_inf",
            "loss_scale",
            "guarded",
            "lr_factor",
            "steps_taken",
            "steps_skipped",
            "norms",
            "abs_max",
        ):
            torch.testing.assert_close(getattr(twin.stats, name), getattr(optimizer.stats, name), equal_nan=True)


def test_constructor_settings_win_over_the_checkpoints():
    _, source = make({"max_norm": 0.5, "clip_value": 3.0})
    train(source, range(2))
    _, target = make({"max_norm": 7.0})
    target.load_state_dict(source.state_dict())
    assert (target.max_norm, target.clip_value) == (7.0, None)


def test_checkpointed_scale_wins_over_the_initial_one():
    _, source = make(SETTINGS["scaled"])
    train(source, range(4))
    _, target = make({"loss_scale": gradops.DynamicLossScale(init_scale=2.0, growth_interval=2)})
    target.load_state_dict(source.state_dict())
    assert carried(target) == carried(source)
    assert target.scale(torch.ones(())).item() == carried(source)["gradops_loss_scale"]


def test_state_dict_is_torchs_own():
    _, ours = make({"max_norm": 1.0})
    _, torchs = make({}, cls=torch.optim.AdamW)
    train(ours, range(3)), train(torchs, range(3))
    mine, theirs = ours.state_dict(), torchs.state_dict()
    assert mine.keys() == theirs.keys()
    assert {row: state.keys() for row, state in mine["state"].items()} == {
        row: state.keys() for row, state in theirs["state"].items()
    }
    first, second = (group.keys() | {"decoupled_weight_decay"} for group in theirs["param_groups"])  # since torch 2.7
    extra = mine["param_groups"][0].keys() - first
    assert extra == set(CHECKPOINT_KEYS)
    assert all(type(mine["param_groups"][0][key]) in (int, float) for key in extra)
    assert mine["param_groups"][1].keys() == second


def test_live_param_groups_are_not_cluttered_by_saving():
    _, optimizer = make({})
    train(optimizer, range(2))
    before = set(optimizer.param_groups[0])
    optimizer.state_dict()
    assert set(optimizer.param_groups[0]) == before


def test_loading_does_not_tie_two_optimizers_together():
    """As with torch, moments of the same dtype are shared; the step counters must not be."""
    _, source = make({})
    train(source, range(2))
    _, target = make({})
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    train(target, range(2, 4))
    assert all(int(state["step"]) == 2 for state in source.state.values())


@pytest.mark.parametrize("fused", [None, True])
def test_checkpoint_goes_to_plain_torch_and_back(fused):
    reference_model, reference = make({}, cls=torch.optim.AdamW)
    train_finite = [step for step in range(STEPS) if step != 4]
    train(reference, train_finite)
    model, ours = make({})
    train(ours, train_finite[:3])
    plain_model, plain = make({"fused": fused}, cls=torch.optim.AdamW)
    plain_model.load_state_dict(model.state_dict())
    plain.load_state_dict(copy.deepcopy(ours.state_dict()))
    for group in plain.param_groups:
        group["fused"] = fused
    train(plain, train_finite[3:5])
    back_model, back = make({"max_norm": 1e9})
    back_model.load_state_dict(plain_model.state_dict())
    back.load_state_dict(copy.deepcopy(plain.state_dict()))
    train(back, train_finite[5:])
    for mine, theirs in zip(back_model.parameters(), reference_model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(back.state.values(), reference.state.values(), strict=True):
        torch.testing.assert_close(mine["exp_avg"], theirs["exp_avg"], rtol=1e-5, atol=1e-7)
        assert mine["step"] == theirs["step"]


def test_ghost_step_of_distributed_checkpoint_only_creates_state():
    model, optimizer = make(SETTINGS["scaled"])
    before = snapshot(optimizer)
    get_optimizer_state_dict(model, optimizer)
    assert_bitwise(snapshot(optimizer), before)
    assert carried(optimizer)["gradops_loss_scale"] == 64.0
    assert carried(optimizer)["gradops_growth_tracker"] == 0
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (0, 0)
    assert all(state["step"] == 0 for state in optimizer.state.values())
    assert len(optimizer.state) == len(params_of(optimizer))
    assert optimizer.param_groups[0]["lr"] == 0.1
    _, whole = make(SETTINGS["scaled"])
    train(whole, range(STEPS)), train(optimizer, range(STEPS))
    assert_bitwise(snapshot(optimizer), snapshot(whole))


def test_ordinary_first_step_of_zero_gradients_and_rate_is_a_step():
    """A warm-up schedule may start at lr 0; only Distributed Checkpoint's call is a ghost."""
    param = torch.ones(3).requires_grad_()
    optimizer = gradops.AdamW([param], lr=0.0)
    param.grad = torch.ones(3)
    optimizer.step()
    assert int(optimizer.state[param]["step"]) == 1


def test_accelerates_round_trip_of_the_state_dict_changes_nothing():
    _, optimizer = make(SETTINGS["scaled"])
    _, whole = make(SETTINGS["scaled"])
    train(whole, range(STEPS))
    for step in range(STEPS):
        train(optimizer, [step])
        optimizer.load_state_dict(optimizer.state_dict())
    assert_bitwise(snapshot(optimizer), snapshot(whole))
    assert carried(optimizer) == carried(whole)


def test_loading_a_checkpoint_of_another_shape_fails_as_with_torch():
    _, optimizer = make({})
    saved = optimizer.state_dict()
    other = gradops.AdamW([torch.ones(3).requires_grad_()])
    with pytest.raises(ValueError, match="parameter group"):
        other.load_state_dict(saved)
