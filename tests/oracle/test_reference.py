"""The oracle itself, held against torch: its optimizers, clip_grad_norm_, clip_grad_value_ and GradScaler."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rules import CASE_NAMES, EVERY_CASE, TORCHS, reference_of, torchs
from timms import TIMM_CASES, TIMMS
from tolerances import TORCH_FLOAT32, TORCH_FLOAT64

from gradops import reference
from gradops.reference import update as reference_update
from gradops.torch_before_2_7 import name_decay_before_2_7

SHAPES = [(3, 5), (), (0,), (17,), (2, 3, 4)]
POLICY = SimpleNamespace(
    init_scale=8.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=3, min_scale=2.0**-14, max_scale=2.0**24
)


# Torch's classes, or timm's where torch has none, and what they are given.
CASES = [(torchs(cls), options) for cls, options in EVERY_CASE if torchs(cls) is not None]
CASES += [(TIMMS[cls], options) for cls, options, _ in TIMM_CASES]
IDS = [name for name, (cls, _) in zip(CASE_NAMES, EVERY_CASE, strict=True) if torchs(cls) is not None]
IDS += [f"timm-{name}" for *_, name in TIMM_CASES]
OURS = {**TORCHS, **{theirs: ours for ours, theirs in TIMMS.items()}}


def twins(cls, dtype, options, **settings):
    params = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in SHAPES]
    of_group = {"params": params[3:], "lr": 1e-2, "weight_decay": 0.05}
    optimizer = cls([{"params": params[:3]}, of_group], **copy.deepcopy(options))
    name_decay_before_2_7(optimizer)
    for group in optimizer.param_groups:
        group.setdefault("maximize", False)  # which timm's Lars has not
    oracle = reference.Reference(optimizer.param_groups, dtype=dtype, rule=reference_of(OURS[cls]), **settings)
    return optimizer, oracle, params


def assert_same(optimizer, oracle, dtype):
    tolerance = TORCH_FLOAT64 if dtype == torch.float64 else TORCH_FLOAT32
    options = {"rtol": tolerance.rtol, "atol": tolerance.atol}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for row, param in enumerate(params):
        state = optimizer.state.get(param, {})
        torch.testing.assert_close(oracle.params[row], param.detach(), **options)
        for key, value in state.items():
            if key == "step":
                assert (oracle.states[row].step if oracle.states[row] else 0) == int(value)
            else:
                torch.testing.assert_close(oracle.states[row][key], value, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("cls", "options"), CASES, ids=IDS)
def test_steps_equal_torch(cls, options, dtype):
    optimizer, oracle, params = twins(cls, dtype, options)
    for step in range(20):
        for row, param in enumerate(params):
            param.grad = None if (step + row) % 5 == 0 else torch.randn_like(param)
        optimizer.step()
        oracle.step([param.grad for param in params])
    assert_same(optimizer, oracle, dtype)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf, 3.0, 0.5])
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_clipping_equals_torch(dtype, max_norm, norm_type):
    settings = {"max_norm": max_norm, "norm_type": norm_type}
    optimizer, oracle, params = twins(torch.optim.AdamW, dtype, {}, **settings)
    for _ in range(5):
        for param in params:
            param.grad = torch.randn_like(param)
        stats = oracle.step([param.grad for param in params])
        # torch refuses the inf norm of an empty tensor.
        expected = torch.nn.utils.clip_grad_norm_([p for p in params if p.numel()], max_norm, norm_type)
        assert stats.grads.grad_norm == pytest.approx(expected.item(), rel=1e-5)
        optimizer.step()
    assert_same(optimizer, oracle, dtype)


def test_clip_value_comes_before_the_norm():
    optimizer, oracle, params = twins(torch.optim.Adam, torch.float64, {}, clip_value=0.5, max_norm=1.0)
    for _ in range(5):
        for param in params:
            param.grad = torch.randn_like(param)
        oracle.step([param.grad for param in params])
        torch.nn.utils.clip_grad_value_(params, 0.5)
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
    assert_same(optimizer, oracle, torch.float64)


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, math.inf, math.nan]), min_size=1, max_size=12))
def test_scale_and_skips_equal_grad_scaler(poisons):
    optimizer, oracle, params = twins(torch.optim.AdamW, torch.float32, {}, max_norm=1.0, loss_scale=POLICY)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    for poison in poisons:
        scaler.scale(torch.zeros(()))
        for param in params:
            param.grad = torch.randn_like(param) * scaler.get_scale()
        params[-1].grad[0, 0, 0] += poison
        stats = oracle.step([param.grad for param in params])
        scaler.unscale_(optimizer)
        if poison == 0.0:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert stats.found_inf == (poison != 0.0)
        assert (oracle.scale, oracle.growth_tracker) == (scaler.get_scale(), scaler._get_growth_tracker())
    assert oracle.stats.steps_taken == poisons.count(0.0)
    assert_same(optimizer, oracle, torch.float32)


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_skipped_step_changes_only_the_counter(poison):
    _, oracle, params = twins(torch.optim.AdamW, torch.float32, {}, max_norm=1.0)
    before = [param.clone() for param in oracle.params]
    grads = [torch.randn_like(param) for param in params]
    grads[0][1, 1] = poison
    stats = oracle.step(grads)
    assert all(torch.equal(a, b) for a, b in zip(before, oracle.params, strict=True))
    assert not any(oracle.states)
    assert (stats.clip_coef, stats.steps_taken, stats.steps_skipped, stats.grads.nonfinite[0]) == (1.0, 0, 1, 1)
    assert math.isnan(stats.grads.grad_norm) if math.isnan(poison) else stats.grads.grad_norm == math.inf


@pytest.mark.parametrize("magnitude", [1e-38, 1e-25, 1.0, 1e20, 1e38])
@pytest.mark.parametrize("norm_type", [0.5, 1.0, 2.0, 3.0, 7.5, math.inf])
def test_norm_is_right_for_huge_and_tiny_gradients(norm_type, magnitude):
    grads = [torch.tensor([3.0, -4.0]) / 8 * magnitude, torch.tensor([0.0, 5.0]) / 8 * magnitude]
    norm = math.fsum(x**norm_type for x in (3 / 8, 4 / 8, 5 / 8)) ** (1 / norm_type) if norm_type < math.inf else 5 / 8
    assert reference.grad_stats(grads, norm_type=norm_type).grad_norm == pytest.approx(norm * magnitude, rel=1e-5)


def test_loss_scale_stays_within_its_bounds():
    policy = SimpleNamespace(**{**vars(POLICY), "growth_interval": 1, "min_scale": 2.0, "max_scale": 32.0})
    scale, seen = 8.0, []
    for found_inf in [True] * 4 + [False] * 6:
        scale, _ = reference.update_loss_scale(scale, 0, found_inf, policy)
        seen.append(scale)
    assert seen == [4.0, 2.0, 2.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]


WARM_UP = [(1, 0, 0.1), (1, 4, 0.025), (2, 4, 0.05), (4, 4, 0.1), (9, 4, 0.1)]


@pytest.mark.parametrize(("step", "warmup_steps", "expected"), WARM_UP)
def test_relative_cap_grows_over_the_warmup(step, warmup_steps, expected):
    cap = SimpleNamespace(cap=0.05, warmup_steps=warmup_steps, floor=0.01)
    assert reference_update.relative_lr(torch.tensor([2.0, -2.0]), 1.0, cap, step) == pytest.approx(expected)


def test_relative_cap_has_a_floor_and_never_raises_lr():
    cap = SimpleNamespace(cap=0.05, warmup_steps=0, floor=0.01)
    assert reference_update.relative_lr(torch.zeros(3), 1.0, cap, 1) == pytest.approx(5e-4)
    assert reference_update.relative_lr(torch.zeros(0), 1.0, cap, 1) == pytest.approx(5e-4)
    assert reference_update.relative_lr(torch.full((3,), 100.0), 1e-3, cap, 1) == 1e-3


def test_step_without_gradients_moves_nothing():
    _, oracle, params = twins(torch.optim.Adam, torch.float32, {}, loss_scale=POLICY)
    oracle.step([torch.randn_like(param) for param in params])
    stats, scale, tracker = oracle.stats, oracle.scale, oracle.growth_tracker
    oracle.step([None] * len(params))
    assert oracle.stats is stats
    assert (oracle.scale, oracle.growth_tracker) == (scale, tracker)
