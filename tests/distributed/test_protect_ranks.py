"""protect on several processes: a batch that is NaN on one of them leaves no trace in the model of any."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F
from beside import assert_same_bits
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import gradops

WORLD, STEPS, MICRO, BAD = 2, 5, 2, 2
WAYS = {"none": None, "own": None, "guard": None, "torch": torch.amp.GradScaler, "gradops": gradops.GradScaler}


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6, momentum=None), nn.Linear(6, 2)
    )


def train(model, protect, way, rank, saw, no_sync=contextlib.nullcontext):
    settings = {
        "own": {"loss_scale": gradops.DynamicLossScale(256.0)},
        "guard": {"guard": gradops.SpikeGuard("skip", ratio=5.0, warmup_steps=1, lr_cut=1.0)},
    }.get(way, {})
    optimizer = gradops.wrap(torch.optim.AdamW(model.parameters(), lr=1e-2), protect=protect, **settings)
    scaler = WAYS[way]("cpu", init_scale=256.0) if WAYS[way] else None
    generator = torch.Generator().manual_seed(2)
    for step, batch in enumerate(torch.randn(STEPS, WORLD, MICRO, 8, 4, generator=generator)):
        if step == BAD and not saw:
            continue
        for micro in range(MICRO):
            inputs, worse = batch[rank, micro].clone(), 1.0
            if step == BAD and rank == 1 and micro == 0:  # on one process, in one micro-batch
                if way == "guard":
                    worse = 1e5
                else:
                    inputs[0, 0] = math.nan
            with contextlib.nullcontext() if micro == MICRO - 1 else no_sync():
                loss = F.mse_loss(model(inputs), torch.ones(8, 2)) * worse
                (scaler.scale(loss) if scaler else optimizer.scale(loss)).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad()
    values = {name: getattr(value, "full_tensor", lambda v=value: v)() for name, value in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        values["evaluation"] = model(torch.arange(32.0).reshape(8, 4))
    return {name: value.detach().clone() for name, value in values.items()}, int(optimizer.stats.steps_skipped)


def trained_by_ddp(way, saw, broadcast, inner):
    model = make_model()
    parallel = DistributedDataParallel(model, broadcast_buffers=broadcast)
    return train(parallel, model if inner else parallel, way, torch.distributed.get_rank(), saw, parallel.no_sync)


def trained_by_fsdp(way, saw):
    mesh = init_device_mesh("cpu", (WORLD,))
    model = make_model()
    for part in (*model, model):
        fully_shard(part, mesh=mesh)
    return train(model, model, way, torch.distributed.get_rank(), saw)


def with_replicated_buffers(way, saw):
    """Buffers that are DTensors, as parallelised modules can have them."""
    mesh = init_device_mesh("cpu", (WORLD,))
    model = make_model()
    model.register_buffer("mean", distribute_tensor(torch.zeros(2), mesh, [Replicate()]))

    def count(module, _, out):
        if module.training:
            module.mean.to_local().mul_(0.9).add_(out.detach().mean(0), alpha=0.1)

    model.register_forward_hook(count)
    assert isinstance(model.mean, DTensor)
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    return train(parallel, parallel, way, torch.distributed.get_rank(), saw, parallel.no_sync)


def assert_no_trace(workers, function, way, *arguments):
    saw, never = (workers.run(WORLD, function, way, seen, *arguments) for seen in (True, False))
    for (values, skipped), (expected, none) in zip(saw, never, strict=True):
        assert (skipped, none) == (1, 0)
        for name, value in values.items():
            assert value.isfinite().all(), name
            assert_same_bits(value, expected[name], name)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("broadcast", [True, False])
def test_ddp(workers, way, broadcast):
    assert_no_trace(workers, trained_by_ddp, way, broadcast, way == "own")


@pytest.mark.parametrize("way", WAYS)
def test_fsdp(workers, way):
    assert_no_trace(workers, trained_by_fsdp, way)


def test_buffers_that_are_dtensors(workers):
    assert_no_trace(workers, with_replicated_buffers, "none")
