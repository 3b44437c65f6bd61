"""Where a gathering would be many bytes the collective itself merges: the same step, alike on every rank."""

import math

import pytest
import tolerances as tol
import torch
from beside import assert_close, assert_same_bits
from layouts import train
from test_sharded_step import SETTINGS, assert_equals_unsharded, assert_ranks_agree
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gradops
from gradops.backends.torch.math import merge_norms
from gradops.distributed import gather

MOST = gather.MOST_GATHERED


def train_reduced(*arguments):
    """`train` without gatherings of the step's numbers."""
    all_gather = gather.all_gather
    gather.MOST_GATHERED, gather.all_gather = 0, None
    try:
        return train(*arguments)
    finally:
        gather.MOST_GATHERED, gather.all_gather = MOST, all_gather


AGC = {"clip_mode": "agc", "max_norm": 0.02, "track_updates": True}
REDUCED = {**{name: SETTINGS[name] for name in ("plain", "clip", "guard")}, "agc": AGC}
REDUCED["capped and tracked"] = {"max_relative_step": 0.001, "track_updates": True, "norm_type": 1.0, "max_norm": 0.5}
REDUCED["cubes"] = {"max_norm": 0.5, "norm_type": 3.0}
REDUCED["torch"] = {**REDUCED["capped and tracked"], "backend": "torch"}


@pytest.mark.parametrize("settings", REDUCED)
@pytest.mark.parametrize(("world", "layout"), [(2, "replicated_beside"), (4, "hsdp"), (4, "mixed_meshes")])
def test_reduced_step_is_the_unsharded_one_on_every_rank(workers, world, layout, settings):
    results = workers.run(world, train_reduced, layout, world, REDUCED[settings])
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, REDUCED[settings]))


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("param", [0, 2, 4])
def test_inf_in_one_ranks_shard_skips_on_every_rank(workers, param, value, backend):
    arguments = {"max_norm": 1.0, "backend": backend}, 3, (2, param, value)
    results = workers.run(4, train_reduced, "hsdp", 4, *arguments)
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, *arguments))
    assert results[0]["stats"].nonfinite[param] == 1
    assert math.isnan(results[0]["stats"].grad_norm) == math.isnan(value)


POWERS = [0.25, 1.5, 3.0, 7.0, 40.0]
# The norms of two ranks' parts of a tensor: as large and as small as float32 and float64 go, alike and apart.
NORMS = torch.tensor(
    [
        [3.4e38, 1.4e-45, 1e-38, 3.4e38, 1.0, 0.0, 0.0, 1e300, 1e-300, math.inf, math.nan],
        [3.4e38, 1.4e-45, 3e-39, 1e-38, 2.0, 0.0, 5.0, 2e300, 3e-300, 1.0, 1.0],
    ],
    dtype=torch.float64,
)


def norms_merged_both_ways(norm_type):
    mesh = init_device_mesh("cpu", (2,))
    gathering = gather.Gathering([distribute_tensor(torch.ones(4), mesh, [Shard(0)]) for _ in NORMS[0]])
    numbers = torch.nn.functional.pad(NORMS[torch.distributed.get_rank()].repeat(2, 1), (0, 1))
    gathered = gathering.gather(numbers, "nm", norm_type)
    of_gathered = merge_norms(gathering.counted(gathered[:, 0, :-1]), norm_type)
    gather.MOST_GATHERED = 0
    try:
        reduced = gathering.gather(numbers, "nm", norm_type)
    finally:
        gather.MOST_GATHERED = MOST
    assert len(gathered) == 2
    assert len(reduced) == 1
    assert_same_bits(reduced[0, 1], gathered[:, 1].amax(0))
    return reduced[0, 0, :-1], of_gathered


@pytest.mark.parametrize("norm_type", POWERS)
def test_powers_of_huge_and_tiny_norms_are_reduced_to_what_gathering_them_gives(workers, norm_type):
    results = workers.run(2, norms_merged_both_ways, norm_type)
    for reduced, gathered in results:
        assert_same_bits(reduced, results[0][0])
        assert gathered[:9].isfinite().all()
        assert not reduced[9:].isfinite().any()
        torch.testing.assert_close(reduced[:9], gathered[:9], rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("magnitude", [1e37, 1e-37])
def test_clipping_by_powers_of_huge_and_tiny_gradients_is_the_unsharded_one(workers, magnitude):
    arguments = {"max_norm": 0.5, "norm_type": 12.0}, 1, None, magnitude
    results = workers.run(2, train_reduced, "fsdp", 2, *arguments)
    expected = train(None, 1, *arguments)
    assert results[0]["stats"].grad_norm.isfinite()
    assert results[0]["stats"].grad_norm > 0
    for name in ("grad_norm", "norms"):
        assert_close(getattr(results[0]["stats"], name), getattr(expected["stats"], name), tol.POWER_NORM, what=name)


def numbers_sent(ranks, params, norm_type):
    """Of one step of `params` parameters as rank 3 of a group of so many, which nobody else is in."""
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    shards = [torch.nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])) for _ in range(params)]
    optimizer = gradops.SGD(shards, lr=0.1, max_norm=1.0, norm_type=norm_type)
    for shard in shards:
        shard.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])
    sent = []
    gathers, reduces = gather.all_gather, torch.distributed.all_reduce
    gather.all_gather = lambda out, numbers, group: sent.append(("gathered", out.numel()))
    torch.distributed.all_reduce = lambda numbers, operation, group: sent.append(("reduced", numbers.numel()))
    monkey = gather.Gathering.gather_objects
    gather.Gathering.gather_objects = lambda self, value: [value] * ranks
    try:
        optimizer.step()
    finally:
        gather.all_gather, torch.distributed.all_reduce = gathers, reduces
        gather.Gathering.gather_objects = monkey
    return sent


def test_what_a_rank_receives_does_not_grow_with_the_ranks(workers):
    (few,) = workers.run(1, numbers_sent, 8, 200, 2.0)
    assert few == [("gathered", 8 * 3 * 201)]
    for norm_type, maxima in ((2.0, 1), (3.0, 2), (math.inf, 1)):
        (many,) = workers.run(1, numbers_sent, 1024, 200, norm_type)
        assert many == [("reduced", 2 * maxima * 201), ("reduced", 2 * 201)]


class _Names(TorchDispatchMode):
    """Collects the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators_of_a_reduction(norm_type):
    mesh = init_device_mesh("cpu", (2,))
    gathering = gather.Gathering([distribute_tensor(torch.ones(4), mesh, [Shard(0)]) for _ in range(3)])
    numbers = torch.rand(5, 4, dtype=torch.float64)
    gathering._reduced(numbers, "nmsnm", norm_type)
    with _Names() as mode:
        reduced = gathering._reduced(numbers, "nmsnm", norm_type)
    return mode.names, reduced, numbers


@pytest.mark.parametrize("norm_type", [2.0, 3.0])
def test_a_reduction_takes_nothing_from_the_host_that_a_device_would_wait_for(workers, norm_type):
    (names, reduced, numbers), (_, other, others) = workers.run(2, operators_of_a_reduction, norm_type)
    assert "stack" in names
    assert not {name for name in names if "index" in name or name in ("_local_scalar_dense", "lift_fresh")}
    assert_same_bits(reduced, other)
    both = torch.stack([numbers, others])
    assert torch.equal(reduced[0, 1], both[:, 1].amax(0))
    torch.testing.assert_close(reduced[0, 0, :3], torch.linalg.vector_norm(both[:, 0, :3], norm_type, dim=0))
    torch.testing.assert_close(reduced[0, 2, :3], both[:, 2, :3].sum(0))
