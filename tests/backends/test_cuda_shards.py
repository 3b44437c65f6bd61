"""Shards on a GPU, by one rank of one: its step, captured and not, without a wait for the device.

What shards of several ranks come to is tested on CPUs and in the emulator.
"""

import pytest
import torch
import torch.distributed as dist
from beside import assert_bitwise, params_of, snapshot
from test_cuda_device import SETTINGS, capture, kernels, scale_and_step, synchronisation_is_an_error  # noqa: F401
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradops

pytestmark = pytest.mark.skipif(not torch.cuda.is_available() or not dist.is_nccl_available(), reason="needs a GPU")
DEVICE, TRANSPORT = "cuda", "nccl"
SHAPES = [(1,), (17,), (64, 33), (3, 3, 16, 16), (300_001,)]


@pytest.fixture
def mesh():
    dist.init_process_group(TRANSPORT, store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh(DEVICE, (1,))
    dist.destroy_process_group()


def make_optimizer(mesh=None, **settings):
    """The same float32 values whenever it is called; with a mesh they are sharded."""
    generator = torch.Generator().manual_seed(5)

    def parameter(shape):
        values, grad = torch.randn(shape, generator=generator).to(DEVICE), torch.zeros(shape, device=DEVICE)
        if mesh is not None:
            values, grad = (distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (values, grad))
        param = torch.nn.Parameter(values)
        param.grad = grad
        return param

    return gradops.AdamW([parameter(shape) for shape in SHAPES], lr=torch.tensor(0.1, device=DEVICE), **settings)


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def train(optimizer, steps, once=None):
    """Steps with gradients that are written where the last ones lie; the second step's overflow."""
    for step in steps:
        generator = torch.Generator().manual_seed(1000 + step)
        for param, shape in zip(params_of(optimizer), SHAPES, strict=True):
            local(param.grad).copy_(torch.randn(shape, generator=generator))
            local(param.grad)[0] += float("inf") if step % 7 == 1 else 0.0
        (once or (lambda: scale_and_step(optimizer)))()


def locals_of(optimizer):
    """A snapshot of what this rank holds."""
    params, states = snapshot(optimizer)
    return list(map(local, params)), [{key: local(value) for key, value in state.items()} for state in states]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_rank_of_one_steps_its_shards_as_whole_tensors(mesh, settings):
    whole, sharded = make_optimizer(**settings), make_optimizer(mesh, **settings)
    for optimizer in (whole, sharded):
        train(optimizer, range(10))
    for mine, theirs in zip(params_of(sharded), params_of(whole), strict=True):
        torch.testing.assert_close(local(mine).detach(), theirs.detach(), rtol=2e-5, atol=1e-6)
    assert torch.equal(sharded.stats.steps_skipped, whole.stats.steps_skipped)


@pytest.mark.parametrize("settings", SETTINGS)
def test_no_step_of_shards_waits_for_the_device(mesh, settings):
    optimizer = make_optimizer(mesh, **settings)
    train(optimizer, range(2))
    with synchronisation_is_an_error():
        for _ in range(3):
            scale_and_step(optimizer)


@pytest.mark.parametrize("settings", SETTINGS)
def test_replays_of_a_captured_step_of_shards_equal_eager_steps(mesh, settings):
    eager, replayed = make_optimizer(mesh, **settings), make_optimizer(mesh, **settings)
    for optimizer in (eager, replayed):
        train(optimizer, range(3))
    replay = capture(replayed)
    train(eager, range(3, 33))
    train(replayed, range(3, 33), replay)
    assert_bitwise(locals_of(replayed), locals_of(eager))
