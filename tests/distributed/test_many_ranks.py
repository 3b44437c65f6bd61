"""Where a gathering would be many bytes the collective itself merges: the same step, alike on every rank."""

import math

import pytest
import torch
from beside import assert_same_bits
from layouts import train
from test_sharded_step import SETTINGS, assert_equals_unsharded, assert_ranks_agree
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gradops
from gradops.distributed import gather

MOST = gather.MOST_GATHERED


def train_reduced(*arguments):
    """`train` without gatherings of the step's numbers."""
    all_gather = gather._all_gather
    gather.MOST_GATHERED, gather._all_gather = 0, None
    try:
        return train(*arguments)
    finally:
        gather.MOST_GATHERED, gather._all_gather = MOST, all_gather


AGC = {"clip_mode": "agc", "max_norm": 0.02, "track_updates": True}
REDUCED = {**{name: SETTINGS[name] for name in ("plain", "clip", "guard")}, "agc": AGC}
REDUCED["capped and tracked"] = {"max_relative_step": 0.001, "track_updates": True, "norm_type": 1.0, "max_norm": 0.5}
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


def numbers_sent(ranks, params, reduced):
    """Of one step of `params` parameters as rank 3 of a group of so many, which nobody else is in."""
    from torch.distributed.tensor import DTensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.destroy_process_group()
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    shards = [torch.nn.Parameter(DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])) for _ in range(params)]
    optimizer = gradops.SGD(shards, lr=0.1, max_norm=1.0)
    for shard in shards:
        shard.grad = DTensor.from_local(torch.ones(2, 3), mesh, [Shard(0)])
    sent = []
    gathers, reduces = gather._all_gather, torch.distributed.all_reduce
    gather._all_gather = lambda out, numbers, group: sent.append(("gathered", out.numel()))
    torch.distributed.all_reduce = lambda numbers, operation, group: sent.append(("reduced", numbers.numel()))
    monkey = gather.Gathering.gather_objects
    gather.Gathering.gather_objects = lambda self, value: [value] * ranks
    try:
        optimizer.step()
    finally:
        gather._all_gather, torch.distributed.all_reduce = gathers, reduces
        gather.Gathering.gather_objects = monkey
    return sent


def test_what_a_rank_receives_does_not_grow_with_the_ranks(workers):
    (few,) = workers.run(1, numbers_sent, 8, 200, False)
    (many,) = workers.run(1, numbers_sent, 1024, 200, True)
    assert few == [("gathered", 8 * 3 * 201)]
    assert many == [("reduced", 2 * 201), ("reduced", 2 * 201)]


class _Names(TorchDispatchMode):
    """Collects the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def operators_of_a_reduction():
    mesh = init_device_mesh("cpu", (2,))
    gathering = gather.Gathering([distribute_tensor(torch.ones(4), mesh, [Shard(0)]) for _ in range(3)])
    numbers = torch.rand(5, 4, dtype=torch.float64)
    gathering._reduced(numbers, "nmsnm", 2.0)
    with _Names() as mode:
        reduced = gathering._reduced(numbers, "nmsnm", 2.0)
    return mode.names, reduced, numbers


def test_a_reduction_takes_nothing_from_the_host_that_a_device_would_wait_for(workers):
    (names, reduced, numbers), (_, other, others) = workers.run(2, operators_of_a_reduction)
    assert "stack" in names
    assert not {name for name in names if "index" in name or name in ("_local_scalar_dense", "lift_fresh")}
    assert_same_bits(reduced, other)
    both = torch.stack([numbers, others])
    assert torch.equal(reduced[0, 1], both[:, 1].amax(0))
    torch.testing.assert_close(reduced[0, 0, :3], both[:, 0, :3].square().sum(0).sqrt())
    torch.testing.assert_close(reduced[0, 2, :3], both[:, 2, :3].sum(0))
