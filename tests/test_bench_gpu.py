"""What can be promised of the GPU benchmark on a machine without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_gpu, libraries
from benchmarks.baselines import RECIPES, make_grads, make_params

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so():
    command = [sys.executable, "-m", "benchmarks.bench_gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == bench_gpu.NO_GPU
    assert "Traceback" not in done.stderr


def test_absent_libraries_are_named_with_the_reason():
    recipes, absent = libraries.find_libraries()
    assert len(recipes) + len(absent) == len(libraries.LIBRARIES)
    assert all(absent.values())


def test_library_that_is_there_steps_with_torchs_adamw_defaults(monkeypatch):
    torchs = libraries.Library("torch's own", "torch.optim", "AdamW", options=())
    shapes = [(3, 4), (5,)]
    ours, reference = (make_params(shapes, make_grads(shapes)) for _ in range(2))
    for mine, theirs in zip(ours, reference, strict=True):
        theirs.data.copy_(mine.data)
    torchs.recipe().build(ours)()
    torch.optim.AdamW(reference, lr=1e-5).step()  # the gradients' norm is too small to be clipped
    for mine, theirs in zip(ours, reference, strict=True):
        assert torch.equal(mine, theirs)


def test_library_that_cannot_be_captured_says_so():
    library = libraries.Library("torch's own", "torch.optim", "AdamW", options=(), capturable=False)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        library.recipe().build([], capturable=True)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.cases is None], ids=lambda r: r.name)
def test_every_recipe_can_be_built_for_a_graph(recipe):
    """Only the keyword is tried: a capturable step itself needs a GPU."""
    shapes = [(3, 4)]
    assert callable(recipe.build(make_params(shapes, make_grads(shapes)), capturable=True))


def test_a_recipe_that_fails_leaves_the_others_standing():
    def fail(step):
        raise RuntimeError("no such device\ndetails")

    steps, failed = bench_gpu.build_all(RECIPES[:1], [(3,)], make_grads([(3,)]), fail)
    assert (steps, failed) == ({}, {RECIPES[0].name: "no such device"})
    steps, failed = bench_gpu.build_all(RECIPES[:1], [(3,)], make_grads([(3,)]), lambda step: step)
    assert (list(steps), failed) == ([RECIPES[0].name], {})


def test_table_compares_with_gradops_and_lists_what_failed():
    shared = {"case": "3x5", "params": 10**9, "tensors": 3, "failed": None, "uncaptured": None, "call_seconds": 1.0}
    ours = {**shared, "recipe": "gradops", "versus": None, "bytes_per_param": 32, "gpu_seconds": 0.5}
    ours |= {"replay_seconds": 0.25}
    slower = {**shared, "recipe": "torch", "versus": "gradops", "bytes_per_param": 40, "gpu_seconds": 1.0}
    slower |= {"replay_seconds": None, "uncaptured": "it synchronises"}
    text = bench_gpu.table([ours, slower], copy_bandwidth=80e9)
    assert "| gradops | 500 ms | 250 ms | 1 s |  | 0.80 |" in text
    assert "| torch | 1 s | - | 1 s | 2.00x | 0.50 |" in text
    assert "torch: it synchronises" in text


def test_steps_take_turns_and_the_median_is_kept():
    readings = {"a": iter([1.0, 9.0, 2.0]), "b": iter([5.0, 5.0, 5.0])}
    steps = {name: name for name in readings}
    assert bench_gpu.in_turns(lambda name: next(readings[name]), steps, rounds=3) == {"a": 2.0, "b": 5.0}
