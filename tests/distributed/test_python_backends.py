"""The steps of torch's operations and of Triton on shards: the unsharded ones, on every rank alike.

Triton's run in a pytest of their own, in its interpreter, that the test at the end starts.
"""

import math

import pytest
import torch
from layouts import IN_PYTHON, INTERPRETED, SMALL, train
from test_sharded_step import assert_equals_unsharded, assert_ranks_agree

import gradops

GUARD = gradops.SpikeGuard("skip", ratio=1.0, warmup_steps=1)
SCALE = gradops.DynamicLossScale(init_scale=8.0, growth_interval=2, min_scale=1.0)
AGC = {"clip_mode": "agc", "max_norm": 0.02}
HALF = {"max_norm": 0.5, "track_updates": True, "ema": gradops.WeightEma(0.5)}

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# By name: processes, layout, settings, class, dtype.
CASES = {
    "plain": (2, "fsdp", {}, gradops.AdamW, FLOAT32),
    "everything": (
        4, "mixed_meshes",
        {
            "max_norm": 0.3, "norm_type": 3.0, "clip_value": 0.7, "amsgrad": True, "loss_scale": SCALE, "l1": 0.02,
            "track_updates": True,
        },
        gradops.AdamW, FLOAT32,
    ),
    "cap": (4, "hsdp", {"max_norm": 0.3, "max_relative_step": 0.001, "track_updates": True}, gradops.AdamW, FLOAT32),
    "cap of SGD": (2, "replicated_beside", {"max_norm": 50.0, "max_relative_step": 0.003}, gradops.SGD, FLOAT32),
    "norms": (4, "two_dimensional", {"max_norm": 0.5, "l1": 0.02}, gradops.LARS, FLOAT32),
    "largest": (2, "fsdp", {"max_norm": 0.5, "norm_type": math.inf}, gradops.AdamW, FLOAT32),
    "guard": (2, "replicated_beside", {"guard": GUARD, "max_relative_step": 0.001}, gradops.AdamW, FLOAT32),
    "units": (4, "hsdp", {**AGC, "max_relative_step": 0.01}, gradops.AdamW, FLOAT32),
    "units, tracked": (
        2, "replicated_beside",
        {**AGC, "track_updates": True, "norm_type": 1.0, "clip_value": 0.7, "loss_scale": SCALE},
        gradops.SGD, FLOAT32,
    ),
    "kahan": (2, "replicated_beside", {**HALF, "rounding": "kahan"}, gradops.AdamW, BFLOAT16),
    "masters": (4, "hsdp", {**HALF, "master_weights": True, "max_relative_step": 0.01}, gradops.AdamW, BFLOAT16),
}  # fmt: skip


@pytest.mark.parametrize(("world", "layout", "settings", "cls", "dtype"), CASES.values(), ids=CASES)
def test_step_of_shards_is_the_unsharded_one_on_every_rank(workers, world, layout, settings, cls, dtype):
    if INTERPRETED and world > 2:  # processes are slow to start, and what they say is merged by the same code
        world, layout = 2, "fsdp"
    arguments = {**settings, "backend": IN_PYTHON}, 3, None, 1.0, dtype, cls, SMALL
    results = workers.run(world, train, layout, world, *arguments)
    assert_ranks_agree(results)
    expected = train(None, 1, *arguments)
    assert_equals_unsharded(results[0], expected)
    assert f"{world} ranks" in results[0]["backend"]
    assert IN_PYTHON in results[0]["backend"]
    if "max_relative_step" in settings:
        assert bool(results[0]["stats"].capped.any())
    if settings.get("clip_mode") == "agc":
        assert results[0]["stats"].clip_coef < 0.2


@pytest.mark.parametrize(("param", "value"), [(1, math.nan), (4, math.inf)])
def test_inf_in_one_ranks_shard_skips_on_every_rank(workers, param, value):
    settings = {"max_norm": 1.0, "loss_scale": SCALE, "track_updates": True, "backend": IN_PYTHON}
    arguments = settings, 3, (2, param, value), 1.0, torch.float32, gradops.AdamW, SMALL
    results = workers.run(2, train, "replicated_beside", 2, *arguments)
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, *arguments))
    assert results[0]["stats"].steps_skipped == 1
    assert results[0]["stats"].nonfinite[param] == 1


@pytest.mark.parametrize("magnitude", [1e20, 1e-25])
def test_norms_of_huge_and_tiny_gradients_are_right(workers, magnitude):
    settings = {"max_norm": 1.0, "backend": IN_PYTHON}
    arguments = settings, 1, None, magnitude, torch.float32, gradops.AdamW, SMALL
    results = workers.run(2, train, "fsdp", 2, *arguments)
    assert_equals_unsharded(results[0], train(None, 1, *arguments))


def test_a_rank_without_elements_exchanges_as_much_as_the_others(workers):
    settings = {**AGC, "track_updates": True, "backend": IN_PYTHON}
    arguments = settings, 2, None, 1.0, FLOAT32, gradops.AdamW, [(1,), (1, 4), (1,), (1, 2)]
    results = workers.run(2, train, "fsdp", 2, *arguments)
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, *arguments))


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="this is what starts the interpreter")
def test_triton_passes_in_the_interpreter():
    pytest.importorskip("triton", minversion="3.3")
    import interpreter

    names = ("test_python_backends", "test_ranks_apart", "test_collectives")
    interpreter.run_interpreted(*(f"distributed/{name}.py" for name in names))
