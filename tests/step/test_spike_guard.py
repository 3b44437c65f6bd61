"""guard: single steps whose norm is far out of its history are skipped or clipped, and the learning rate is cut."""

import copy
import io
import math
import pickle

import pytest
import torch
from beside import Beside, assert_bitwise, snapshot
from cases import CHUNK, ParamCase, group_options, param_cases
from hypothesis import given
from hypothesis import strategies as st

import gradops
from gradops import SpikeGuard

QUICK = {"action": "skip", "warmup_steps": 3, "history": 8}
CLIPPING = {**QUICK, "action": "clip"}
GUARDS = [
    SpikeGuard(**QUICK),
    SpikeGuard(**CLIPPING),
    SpikeGuard(ratio=1.0, z_score=3.0, lr_cut=0.5, recovery_steps=4, min_lr_factor=0.3, **CLIPPING),
    SpikeGuard("skip", ratio=1.5, lr_cut=1.0, warmup_steps=1, history=1),
]
STEADY, SPIKE = 1.0, 50.0


def make(device, guard, **settings):
    param = torch.ones(40, device=device).requires_grad_()
    return gradops.AdamW([param], lr=0.01, guard=guard, **settings), param


def step(optimizer, norm):
    """One step whose gradient has this norm; returns a snapshot of the stats."""
    param = optimizer.param_groups[0]["params"][0]
    param.grad = torch.ones_like(param) * (norm / param.numel() ** 0.5)
    if optimizer.loss_scale is not None:
        param.grad *= optimizer.scale(torch.ones(())).to(param.device)
    optimizer.step()
    return optimizer.stats.cpu()


def warm(optimizer, steps=4):
    for number in range(steps):
        assert not step(optimizer, STEADY * (1.0 + 0.01 * number)).guarded


@pytest.mark.parametrize("guard", GUARDS)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_guarded_steps_equals_the_oracle(guard, device, data, seed):
    torch.manual_seed(seed)
    cases = [ParamCase((31, 33)), *data.draw(st.lists(param_cases(), max_size=3))]
    settings = {
        "guard": guard,
        "max_norm": data.draw(st.sampled_from([None, 0.3])),
        "norm_type": data.draw(st.sampled_from([2.0, 1.0, math.inf])),
        "max_relative_step": data.draw(st.sampled_from([None, 0.05])),
        "loss_scale": data.draw(st.sampled_from([None, gradops.DynamicLossScale(64.0, growth_interval=2)])),
    }
    params = [case.param(device) for case in cases]
    both = Beside(gradops.AdamW([{"params": params, **data.draw(group_options())}], **settings), **settings)
    scales = st.sampled_from([1.0, 1.0, 1.0, 60.0, 0.02, 1e25, math.nan])
    for scale in [1.0, 1.0, 1.0, *data.draw(st.lists(scales, min_size=1, max_size=4))]:
        both.step([case.grad(scale, device) for case in cases])


def test_spike_is_skipped_bit_for_bit_and_said_to_be(device):
    optimizer, _ = make(device, SpikeGuard(**QUICK), max_norm=0.5)
    warm(optimizer)
    before = snapshot(optimizer)
    stats = step(optimizer, SPIKE)
    assert_bitwise(snapshot(optimizer), before)
    assert (stats.guarded, stats.found_inf, stats.clip_coef) == (1.0, 0.0, 1.0)
    assert (stats.steps_taken, stats.steps_skipped) == (4, 1)
    assert stats.grad_norm.item() == pytest.approx(SPIKE)


def test_clipped_spike_has_the_usual_size(device):
    optimizer, _ = make(device, SpikeGuard(**CLIPPING))
    warm(optimizer)
    stats = step(optimizer, SPIKE)
    assert (stats.guarded, stats.steps_skipped) == (1.0, 0)
    assert (stats.clip_coef * stats.grad_norm).item() == pytest.approx(STEADY, rel=0.5)


def test_clipped_spike_is_clipped_to_max_norm_where_that_is_less(device):
    optimizer, _ = make(device, SpikeGuard(**CLIPPING), max_norm=0.1)
    warm(optimizer)
    stats = step(optimizer, SPIKE)
    assert (stats.clip_coef * stats.grad_norm).item() == pytest.approx(0.1, rel=1e-4)


def test_learning_rate_is_cut_after_a_spike_and_recovers_in_the_steps_that_were_asked_for(device):
    optimizer, _ = make(device, SpikeGuard(lr_cut=0.5, recovery_steps=10, **QUICK))
    warm(optimizer)
    assert step(optimizer, SPIKE).lr_factor == 1.0
    factors = [step(optimizer, STEADY).lr_factor.item() for _ in range(12)]
    assert factors[:2] == pytest.approx([0.5, 0.5 * 2**0.1], rel=1e-6)
    assert factors[9] < 0.95
    assert factors[10:] == pytest.approx([1.0, 1.0], rel=1e-6)
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_cut_rate_is_the_rate_of_the_update_and_of_decoupled_decay(device):
    results = []
    for lr, guard in ((0.01, SpikeGuard(lr_cut=0.25, recovery_steps=1000, **QUICK)), (0.0025, None)):
        optimizer, param = make(device, guard)
        warm(optimizer)
        if guard is not None:
            step(optimizer, SPIKE)
        param.data.fill_(1.0)
        optimizer.param_groups[0]["lr"] = lr
        step(optimizer, STEADY)
        results.append(param.detach().clone())
    torch.testing.assert_close(*results, rtol=1e-7, atol=0.0)
    assert (results[0] < 1.0).all()


def test_cap_is_put_on_the_cut_rate(device):
    optimizer, _ = make(device, SpikeGuard(lr_cut=0.1, **QUICK), max_relative_step=0.005)
    warm(optimizer)
    assert step(optimizer, STEADY).capped.tolist() == [True]
    step(optimizer, SPIKE)
    assert step(optimizer, STEADY).capped.tolist() == [False]


def test_rate_never_falls_below_its_floor(device):
    optimizer, _ = make(device, SpikeGuard(lr_cut=0.1, min_lr_factor=0.05, ratio=1.0, **QUICK))
    warm(optimizer)
    factors = [step(optimizer, STEADY * 3.0**number).lr_factor.item() for number in range(1, 5)]
    assert factors == pytest.approx([1.0, 0.1, 0.05, 0.05])


def test_nothing_is_a_spike_before_the_warmup_is_over(device):
    optimizer, _ = make(device, SpikeGuard(warmup_steps=5))
    said = [step(optimizer, norm).guarded.item() for norm in (1.0, SPIKE, 1.0, SPIKE, 1.0, SPIKE)]
    assert said == [0.0] * 5 + [1.0]


def test_one_spike_moves_the_history_no_more_than_a_norm_just_above_the_usual(device):
    usual = []
    for norm in (SPIKE, 1e30, STEADY * 1.5):
        optimizer, _ = make(device, SpikeGuard(**QUICK))
        warm(optimizer)
        step(optimizer, norm)
        usual.append(optimizer.state_dict()["param_groups"][0]["gradops_usual_norm"])
    assert usual[0] == usual[1] == usual[2] < 2.0


def test_level_that_stays_becomes_the_usual_one(device):
    optimizer, _ = make(device, SpikeGuard(**QUICK))
    warm(optimizer)
    said = [step(optimizer, SPIKE).guarded.item() for _ in range(40)]
    assert said[0] == 1.0
    assert said[-10:] == [0.0] * 10


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_step_with_inf_or_nan_is_as_without_a_guard_and_does_not_enter_the_history(poison, device):
    optimizer, _ = make(device, SpikeGuard(**QUICK), loss_scale=gradops.DynamicLossScale(8.0))
    warm(optimizer)
    step(optimizer, SPIKE)
    before = optimizer.state_dict()["param_groups"][0]
    stats = step(optimizer, poison)
    after = optimizer.state_dict()["param_groups"][0]
    assert (stats.found_inf, stats.guarded, after["gradops_loss_scale"]) == (1.0, 0.0, 4.0)
    for key in ("gradops_lr_factor", "gradops_usual_norm", "gradops_norm_deviation", "gradops_norms_seen"):
        assert after[key] == before[key]


def test_inf_that_was_edited_away_does_not_let_the_norm_enter_the_history(device):
    optimizer, param = make(device, SpikeGuard(**QUICK), loss_scale=8.0)
    warm(optimizer)
    before = optimizer.state_dict()["param_groups"][0]
    optimizer.scale(torch.ones(()))
    param.grad = torch.full_like(param, math.inf)
    optimizer.unscale_()
    param.grad.fill_(1.0)
    optimizer.step()
    after = optimizer.state_dict()["param_groups"][0]
    assert (optimizer.stats.found_inf, optimizer.stats.guarded) == (1.0, 0.0)
    assert after["gradops_norms_seen"] == before["gradops_norms_seen"]
    assert after["gradops_usual_norm"] == before["gradops_usual_norm"]


def test_spike_does_not_move_the_loss_scale(device):
    optimizer, _ = make(device, SpikeGuard(**QUICK), loss_scale=gradops.DynamicLossScale(8.0, growth_interval=5))
    warm(optimizer)
    stats = step(optimizer, SPIKE)
    assert (stats.guarded, stats.found_inf) == (1.0, 0.0)
    assert step(optimizer, STEADY).loss_scale == 16.0


def test_gradscaler_is_not_told_of_a_spike(device):
    optimizer, param = make(device, SpikeGuard(**QUICK))
    scaler = gradops.GradScaler(device.type, init_scale=8.0)
    for norm in (STEADY, STEADY, STEADY, STEADY, SPIKE):
        optimizer.zero_grad()
        scaler.scale((param * (norm / param.numel() ** 0.5)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.stats.guarded == 1.0
    assert scaler.get_scale() == 8.0


def test_norm_that_never_changes_is_its_own_usual_one_and_no_spike_at_any_ratio(device):
    optimizer, _ = make(device, SpikeGuard(**{**QUICK, "ratio": 1.0}), norm_type=math.inf)
    said = [step(optimizer, STEADY) for _ in range(8)]
    assert not any(stats.guarded for stats in said)
    assert optimizer.state_dict()["param_groups"][0]["gradops_usual_norm"] == said[0].grad_norm.item()


def test_norm_beyond_float32_is_a_spike_that_does_not_enter_the_history(device):
    optimizer, param = make(device, SpikeGuard(**QUICK))
    warm(optimizer)
    before = optimizer.state_dict()["param_groups"][0]
    param.grad = torch.full_like(param, 3e38)
    optimizer.step()
    after = optimizer.state_dict()["param_groups"][0]
    assert (optimizer.stats.guarded, optimizer.stats.found_inf) == (1.0, 0.0)
    assert optimizer.stats.grad_norm == math.inf
    for key in ("gradops_usual_norm", "gradops_norm_deviation", "gradops_norms_seen"):
        assert after[key] == before[key]


@pytest.mark.parametrize("norm", [0.0, 1e-40])
def test_norms_that_vanish_do_not_enter_the_history(norm, device):
    optimizer, _ = make(device, SpikeGuard(**QUICK), norm_type=math.inf)
    warm(optimizer)
    seen = optimizer.state_dict()["param_groups"][0]["gradops_norms_seen"]
    step(optimizer, norm)
    assert optimizer.state_dict()["param_groups"][0]["gradops_norms_seen"] == seen + (norm > 0)


def test_deviation_tells_a_noisy_norm_from_a_spike(device):
    """Norms that jump about by a factor of 4 are usual here, and ten times the usual one is not."""
    noisy = [1.0, 4.0] * 12
    said = {}
    for z_score in (0.0, 5.0):
        optimizer, _ = make(device, SpikeGuard(ratio=1.5, z_score=z_score, history=16, warmup_steps=8))
        flags = [step(optimizer, norm).guarded.item() for norm in noisy]
        said[z_score] = (sum(flags), step(optimizer, 100.0).guarded.item())
    assert said[0.0][0] > 0
    assert said[5.0] == (0, 1.0)


@pytest.mark.parametrize("action", ["skip", "clip"])
def test_resumed_run_is_bitwise_the_uninterrupted_one(action, device):
    guard = SpikeGuard(**{**QUICK, "action": action})
    norms = [1.0, 1.1, 0.9, 1.2, SPIKE, 1.0, 0.8, SPIKE, 1.1, 1.0]
    whole, _ = make(device, guard)
    first, _ = make(device, guard)
    for optimizer, part in ((whole, norms), (first, norms[:6])):
        for norm in part:
            step(optimizer, norm)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second, param = make(device, guard)
    param.data.copy_(first.param_groups[0]["params"][0].data)
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for twin in (second, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        said = [step(twin, norm).guarded.item() for norm in norms[6:]]
        assert said == [0.0, 1.0, 0.0, 0.0]
        assert_bitwise(snapshot(twin), snapshot(whole))
        assert twin.state_dict()["param_groups"][0] == whole.state_dict()["param_groups"][0]


def test_guard_set_later_begins_a_history_of_its_own(device):
    optimizer, _ = make(device, SpikeGuard(**QUICK))
    warm(optimizer)
    step(optimizer, SPIKE)
    optimizer.guard = None
    assert step(optimizer, SPIKE).lr_factor == 1.0
    optimizer.guard = SpikeGuard(**QUICK)
    said = [step(optimizer, norm) for norm in (STEADY, SPIKE, STEADY)]
    assert [(float(stats.guarded), float(stats.lr_factor)) for stats in said] == [(0.0, 1.0)] * 3
    assert step(optimizer, SPIKE).guarded


def test_step_without_gradients_lets_nothing_recover(device):
    optimizer, param = make(device, SpikeGuard(**QUICK))
    warm(optimizer)
    step(optimizer, SPIKE)
    before = optimizer.state_dict()["param_groups"][0]
    param.grad = None
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0] == before


def test_where_no_spike_is_seen_the_step_is_exactly_the_unguarded_one(device):
    results = []
    for guard in (None, SpikeGuard(ratio=1e6)):
        torch.manual_seed(5)
        case = ParamCase((CHUNK + 5,))
        optimizer = gradops.AdamW([case.param(device)], max_norm=1.0, max_relative_step=0.05, guard=guard)
        for _ in range(4):
            optimizer.param_groups[0]["params"][0].grad = case.grad(device=device)
            optimizer.step()
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"action": "stop"}, 'action must be "skip" or "clip", got \'stop\''),
        ({"ratio": 0.5}, "ratio must be finite and at least 1, got 0.5"),
        ({"ratio": math.nan}, "ratio must be finite"),
        ({"z_score": -1.0}, "z_score must be finite and not negative"),
        ({"lr_cut": 0.0}, "lr_cut must be above 0 and at most 1"),
        ({"lr_cut": 1.5}, "lr_cut must be above 0 and at most 1"),
        ({"min_lr_factor": 0.0}, "min_lr_factor must be above 0"),
        ({"recovery_steps": 0}, "recovery_steps must be at least 1"),
        ({"recovery_steps": 10**9}, "recovery_steps must be small enough for float32"),
        ({"history": 0}, "history must be at least 1"),
        ({"warmup_steps": 0}, "warmup_steps must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SpikeGuard(**wrong)


def test_guard_that_is_no_guard_is_refused():
    with pytest.raises(TypeError, match=r"guard must be a SpikeGuard or None, got 5\.0"):
        gradops.AdamW([torch.ones(1).requires_grad_()], guard=5.0)
