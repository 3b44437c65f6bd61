"""DTensor parameters of every layout: the step is the unsharded one, on every rank alike."""

import math

import pytest
import tolerances as tol
import torch
from beside import assert_close, assert_same_bits
from layouts import LAYOUTS, result_of, spread, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

import gradops
from gradops.backends.sharded import plan as sharded_plan
from gradops.settings import Settings

SETTINGS = {
    "plain": {},
    "clip": {"max_norm": 0.5},
    "everything": {
        "max_norm": 0.3, "norm_type": 3.0, "clip_value": 0.7, "amsgrad": True,
        "max_relative_step": gradops.RelativeStepCap(0.001, warmup_steps=2),
        "loss_scale": gradops.DynamicLossScale(init_scale=8.0, growth_interval=2, min_scale=1.0),
        "track_updates": True, "l1": 0.02,
    },
    "largest": {"max_norm": 0.5, "norm_type": math.inf},
    "guard": {"guard": gradops.SpikeGuard("skip", ratio=1.0, warmup_steps=1), "max_relative_step": 0.001},
}  # fmt: skip
CASES = [(world, layout) for world, layouts in LAYOUTS.items() for layout in layouts]
STATS = ("grad_norm", "clip_coef", "found_inf", "loss_scale", "norms", "abs_max", "nonfinite", "capped", "guarded")
TRACKED = ("update_ratio", "param_rms")


def assert_ranks_agree(results):
    """Bit for bit, in everything."""
    for other in results[1:]:
        for mine, theirs in zip(results[0]["params"], other["params"], strict=True):
            assert_same_bits(mine, theirs, "param")
        for mine, theirs in zip(results[0]["states"], other["states"], strict=True):
            assert mine.keys() == theirs.keys()
            for key in mine:
                assert_same_bits(mine[key], theirs[key], key)
        for name in (*STATS, *TRACKED):
            assert_same_bits(getattr(results[0]["stats"], name), getattr(other["stats"], name), name)
        assert results[0]["scale"] == other["scale"]


def assert_equals_unsharded(result, expected, exact=False):
    exactly = tol.Tolerance(0.0, 0.0, "nothing is summed over ranks that an update depends on")
    for mine, theirs in zip(result["params"], expected["params"], strict=True):
        assert_close(mine, theirs, exactly if exact else tol.TORCH_FLOAT32, 1.0, "param")
    for mine, theirs in zip(result["states"], expected["states"], strict=True):
        for key in theirs:
            assert_close(mine[key], theirs[key], exactly if exact else tol.TORCH_FLOAT32, 1.0, key)
    for name in ("grad_norm", "norms", "clip_coef"):
        mine, theirs = getattr(result["stats"], name), getattr(expected["stats"], name)
        assert_close(mine, theirs, tol.POWER_NORM, what=name)
    for name in TRACKED:
        assert_close(getattr(result["stats"], name), getattr(expected["stats"], name), tol.TORCH_FLOAT32, what=name)
    told = ("found_inf", "loss_scale", "abs_max", "nonfinite", "capped", "guarded", "lr_factor")
    for name in (*told, "steps_taken", "steps_skipped"):
        assert_same_bits(getattr(result["stats"], name), getattr(expected["stats"], name), name)
    assert result["scale"] == expected["scale"]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("world", "layout"), CASES)
def test_step_is_the_unsharded_one_on_every_rank(workers, world, layout, settings):
    results = workers.run(world, train, layout, world, SETTINGS[settings])
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, SETTINGS[settings]), exact=settings == "plain")
    assert f"{world} ranks" in results[0]["backend"]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("param", [0, 2, 4])
@pytest.mark.parametrize(("world", "layout"), [(2, "replicated_beside"), (4, "hsdp"), (4, "mixed_meshes")])
def test_inf_in_one_ranks_shard_skips_on_every_rank(workers, world, layout, param, value):
    settings, poison = {"max_norm": 1.0}, (2, param, value)
    results = workers.run(world, train, layout, world, settings, 3, poison)
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, settings, 3, poison))
    assert results[0]["stats"].steps_skipped == 1
    assert results[0]["stats"].nonfinite[param] == 1


@pytest.mark.parametrize("magnitude", [1e20, 1e-25])
def test_norms_of_huge_and_tiny_gradients_are_right(workers, magnitude):
    settings = {"max_norm": 1.0}
    results = workers.run(2, train, "fsdp", 2, settings, 1, None, magnitude)
    expected = train(None, 1, settings, 1, None, magnitude)
    assert_close(results[0]["stats"].grad_norm, expected["stats"].grad_norm, tol.NORM)
    assert_close(results[0]["stats"].norms, expected["stats"].norms, tol.NORM)


def test_moments_of_shards_may_be_bfloat16(workers):
    settings = {"moments_dtype": torch.bfloat16}
    results = workers.run(2, train, "fsdp", 2, settings, 3, None, 1.0)
    assert_equals_unsharded(results[0], train(None, 1, settings, 3, None, 1.0), exact=True)
    assert all(state["exp_avg"].dtype == torch.bfloat16 for state in results[0]["states"])


def test_half_precision_shards_have_float32_moments(workers):
    results = workers.run(2, train, "fsdp", 2, {}, 3, None, 1.0, torch.bfloat16)
    assert_equals_unsharded(results[0], train(None, 1, {}, 3, None, 1.0, torch.bfloat16), exact=True)
    assert all(state["exp_avg"].dtype == torch.float32 for state in results[0]["states"])


def train_with_masters(sharded):
    """A half-precision parameter that is whole, beside a sharded one in float32."""
    mesh = init_device_mesh("cpu", (2,)) if sharded else None
    values = [torch.linspace(-1.0, 1.0, 12).view(4, 3), torch.linspace(-1.0, 1.0, 6).bfloat16()]
    wheres = [(mesh, [Shard(0)]) if sharded else None, None]
    params = [torch.nn.Parameter(spread(value, where)) for value, where in zip(values, wheres, strict=True)]
    optimizer = gradops.AdamW(params, lr=1e-4, master_weights=True, max_relative_step=1.0)
    for step in range(6):
        for param, where in zip(params, wheres, strict=True):
            grad = torch.full(param.shape, math.inf if step == 3 else 1.0, dtype=param.dtype)
            param.grad = spread(grad, where)
        optimizer.step()
    return result_of(optimizer, params)


def test_masters_of_whole_parameters_beside_sharded_ones_are_updated(workers):
    results, expected = workers.run(2, train_with_masters, True), train_with_masters(False)
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], expected, exact=True)
    assert_same_bits(results[0]["states"][1]["master"], expected["states"][1]["master"])
    assert not torch.equal(expected["states"][1]["master"], expected["params"][1].float())


def test_clipping_by_units_is_refused_since_a_shard_may_hold_parts_of_them():
    with pytest.raises(ValueError, match="clip_mode cannot be set where parameters are sharded"):
        sharded_plan.ShardedPlan.prepare(Settings(clip_mode="agc", max_norm=0.01))


def test_a_setting_that_the_sharded_step_does_not_know_is_refused(monkeypatch):
    settings = Settings(clip_value=0.5)
    assert sharded_plan.ShardedPlan.prepare(settings) is settings
    monkeypatch.setattr(sharded_plan, "_SUPPORTED", sharded_plan._SUPPORTED - {"clip_value"})
    with pytest.raises(ValueError, match="clip_value cannot be set where parameters are sharded"):
        sharded_plan.ShardedPlan.prepare(settings)
