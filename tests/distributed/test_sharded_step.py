"""DTensor parameters of every layout: the step is the unsharded one, on every rank alike."""

import math

import pytest
import tolerances as tol
import torch
import torch.distributed as dist
from beside import assert_close, assert_same_bits
from layouts import BACKENDS, LAYOUTS, result_of, spread, train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import gradops
from gradops.backends import choose
from gradops.optim import adam

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
        for key, value in theirs.items():
            magnitude = max([1.0, *value.abs().flatten().tolist()])
            assert_close(mine[key], value, exactly if exact else tol.TORCH_FLOAT32, magnitude, key)
    for name in ("grad_norm", "norms", "clip_coef"):
        mine, theirs = getattr(result["stats"], name), getattr(expected["stats"], name)
        assert_close(mine, theirs, tol.POWER_NORM, what=name)
    for name in TRACKED:
        assert_close(getattr(result["stats"], name), getattr(expected["stats"], name), tol.TORCH_FLOAT32, what=name)
    agreed = ("found_inf", "loss_scale", "abs_max", "nonfinite", "capped", "guarded", "lr_factor")
    for name in (*agreed, "steps_taken", "steps_skipped"):
        assert_same_bits(getattr(result["stats"], name), getattr(expected["stats"], name), name)
    assert result["scale"] == expected["scale"]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(("world", "layout"), CASES)
def test_step_is_the_unsharded_one_on_every_rank(workers, world, layout, settings):
    results = workers.run(world, train, layout, world, SETTINGS[settings])
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, SETTINGS[settings]), exact=settings == "plain")
    assert f"{world} ranks" in results[0]["backend"]


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize(("world", "layout"), [case for case in CASES if case[1] != "two_dimensional"])
def test_filters_and_rows_are_clipped_as_in_the_unsharded_step(workers, world, layout, tracked):
    settings = {"clip_mode": "agc", "max_norm": 0.02, "track_updates": tracked, "max_relative_step": 0.01}
    results = workers.run(world, train, layout, world, settings)
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, settings))
    assert results[0]["stats"].clip_coef < 0.1


@pytest.mark.parametrize("settings", [{"rounding": "kahan"}, {"master_weights": True}], ids=str)
@pytest.mark.parametrize(("world", "layout"), [(2, "fsdp"), (2, "replicated_beside"), (4, "hsdp")])
def test_half_precision_is_rounded_as_in_the_unsharded_step(workers, world, layout, settings):
    settings = {**settings, "max_norm": 0.5, "track_updates": True, "ema": gradops.WeightEma(0.5)}
    arguments = (settings, 4, None, 1.0, torch.bfloat16)
    results = workers.run(world, train, layout, world, *arguments)
    assert_ranks_agree(results)
    expected = train(None, 1, *arguments)
    assert {"kahan": "compensation"}.get(settings.get("rounding"), "master") in expected["states"][0]
    assert_equals_unsharded(results[0], expected)


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


def train_and_move(backend, moves):
    """What a rank holds after four steps; with `moves` in other memory from the third on, as FSDP2 does when a model is
    moved or loaded.
    """
    mesh = init_device_mesh("cpu", (2,))
    param = torch.nn.Parameter(spread(torch.ones(5, 3), (mesh, [Shard(0)])))
    optimizer = gradops.AdamW([param], lr=0.1, max_norm=0.5, backend=backend)
    for step in range(4):
        param.grad = spread(torch.full((5, 3), 1.0 + step), (mesh, [Shard(0)]))
        if moves and step == 2:
            param._local_tensor = param._local_tensor.detach().clone()
        optimizer.step()
    return param.to_local().detach().clone()


@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_that_lie_elsewhere_now_are_stepped_where_they_lie(workers, backend):
    moved, stayed = (workers.run(2, train_and_move, backend, moves) for moves in (True, False))
    for mine, theirs in zip(moved, stayed, strict=True):
        assert_same_bits(mine, theirs)


def step_by_unsummed_gradients(backend):
    """A replicated parameter of ones after each of three steps, the middle one's gradient as the parameter is spread;
    the others wait for a sum over both ranks.
    """
    mesh = init_device_mesh("cpu", (2,))
    param = torch.nn.Parameter(spread(torch.ones(3), (mesh, [Replicate()])))
    optimizer = gradops.SGD([param], lr=0.125, backend=backend)
    found = []
    for placement in (Partial(), Replicate(), Partial()):
        param.grad = DTensor.from_local(torch.full((3,), 1.0 + dist.get_rank()), mesh, [placement], run_check=False)
        if placement.is_replicate():
            param.grad = spread(torch.ones(3), (mesh, [placement]))
        optimizer.step()
        found.append(param.to_local().tolist())
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_wait_for_a_sum_are_summed(workers, backend):
    expected = [[value] * 3 for value in (0.625, 0.5, 0.125)]
    assert workers.run(2, step_by_unsummed_gradients, backend) == [expected] * 2


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


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_native_code_steps_shards_where_it_steps_whole_parameters(device):
    if reason := choose.missing("native", "cpu"):
        pytest.skip(reason)
    choice = choose.Choice("native", torch.device(device), sharded=True)
    assert type(choose.make_plan(choice, adam.RULE)).__name__ == "NativePlan"
