"""Whole training loops: DDP and FSDP2 against one process, with every way to scale losses."""

import contextlib

import pytest
import tolerances as tol
import torch
from beside import assert_close, assert_same_bits
from layouts import full
from quick import slow_but
from rules import CLASSES, table_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import gradops

BATCH, MICRO, STEPS = 8, 2, 3
SCALERS = {"none": None, "own": None, "torch": torch.amp.GradScaler, "gradops": gradops.GradScaler}


def make_model():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))


def batches(rank, world):
    """This rank's micro-batches, step by step; the first input of the second step overflows, on the last rank."""
    generator = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        inputs = torch.randn(BATCH, 6, generator=generator)
        targets = torch.randn(BATCH, 3, generator=generator)
        if step == 1:
            inputs[-1, 0] = float("inf")
        own = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
        yield list(zip(inputs[own].chunk(MICRO), targets[own].chunk(MICRO), strict=True))


def run(model, params, scaling, rank, world, no_sync=None, name=None):
    """Trains with gradient accumulation; returns parameters, scales, skips, stats and averages.

    With AdamW, or with the class of this name, the last of its options and averages of the weights.
    """
    settings = {"max_norm": 0.1}
    if scaling == "own":
        settings["loss_scale"] = gradops.DynamicLossScale(init_scale=256.0, growth_interval=1)
    if name is None:
        optimizer = gradops.wrap(torch.optim.AdamW(params, lr=1e-2), **settings)
    else:
        cls = getattr(gradops, name)
        options = {**[*table_of(cls).options.values()][-1], "lr": 1e-2}
        optimizer = cls(params, **options, **settings, ema=gradops.WeightEma(0.5))
    scaler_cls = SCALERS[scaling]
    scaler = scaler_cls("cpu", init_scale=256.0, growth_interval=1) if scaler_cls else None
    scales, skipped = [], []
    for micro_batches in batches(rank, world):
        for index, (inputs, targets) in enumerate(micro_batches):
            last = index == MICRO - 1
            with contextlib.nullcontext() if last or no_sync is None else no_sync():
                loss = torch.nn.functional.mse_loss(model(inputs), targets) / MICRO
                (scaler.scale(loss) if scaler else optimizer.scale(loss)).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        else:
            optimizer.step()
            scales.append(float(optimizer.engine.buffers.current_scale))
        optimizer.zero_grad()
        skipped.append(bool(optimizer.stats.found_inf))
    averages = [full(optimizer.state[param]["ema"]) for param in params if name is not None]
    return [full(param.detach()) for param in params] + averages, scales, skipped, optimizer.stats.cpu()


def train_ddp(rank_count, scaling, name=None):
    rank = torch.distributed.get_rank()
    model = DistributedDataParallel(make_model())
    return run(model, list(model.parameters()), scaling, rank, rank_count, model.no_sync, name)


def train_fsdp(rank_count, scaling, layout):
    model, mesh = make_model(), mesh_of(rank_count, layout)
    if layout == "tensor parallel":
        parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        mesh = mesh["dp"]
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)

    @contextlib.contextmanager
    def no_sync():
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)

    assert all(param.device_mesh.ndim == (1 if layout == "flat" else 2) for param in model.parameters())
    # The processes of one tensor parallel group read the same batches.
    rank = mesh.mesh.flatten().tolist().index(torch.distributed.get_rank())
    return run(model, list(model.parameters()), scaling, rank, mesh.size(), no_sync)


def mesh_of(rank_count, layout):
    if layout == "flat":
        return init_device_mesh("cpu", (rank_count,))
    names = ("dp", "tp") if layout == "tensor parallel" else ("replicate", "shard")
    return init_device_mesh("cpu", (2, rank_count // 2), mesh_dim_names=names)


def assert_trained_alike(results, scaling, name=None):
    model = make_model()
    expected = run(model, list(model.parameters()), scaling, 0, 1, name=name)
    for params, scales, skipped, stats in results:
        for mine, theirs, first in zip(params, expected[0], results[0][0], strict=True):
            assert_close(mine, theirs, tol.TORCH_FLOAT32, 1.0)
            assert_same_bits(mine, first)
        assert (scales, skipped) == (expected[1], expected[2])
        assert skipped == [False, True, False]
        assert_close(stats.grad_norm, expected[3].grad_norm, tol.TORCH_FLOAT32, 1.0)
        assert_same_bits(stats.grad_norm, results[0][3].grad_norm)


@pytest.mark.parametrize("scaling", SCALERS)
@pytest.mark.parametrize("world", [2, 4])
def test_ddp_trains_as_one_process_with_the_same_bits_on_every_rank(workers, world, scaling):
    assert_trained_alike(workers.run(world, train_ddp, world, scaling), scaling)


@pytest.mark.parametrize("name", slow_but(["SGD", "LARS"], [cls.__name__ for cls in CLASSES]))
def test_ddp_trains_by_every_rule_as_one_process(workers, name):
    assert_trained_alike(workers.run(2, train_ddp, 2, "own", name), "own", name)


@pytest.mark.parametrize("scaling", SCALERS)
@pytest.mark.parametrize(("world", "layout"), [(2, "flat"), (4, "flat"), (4, "hybrid"), (4, "tensor parallel")])
def test_fsdp2_trains_as_one_process(workers, world, layout, scaling):
    assert_trained_alike(workers.run(world, train_fsdp, world, scaling, layout), scaling)


def unscale_and_repair():
    """An inf on one rank, seen by `unscale_` and edited away before the step."""
    mesh = init_device_mesh("cpu", (2,))
    param = torch.nn.Parameter(distribute_tensor(torch.ones(8), mesh, [Shard(0)]))
    optimizer = gradops.AdamW([param], lr=0.1, loss_scale=gradops.DynamicLossScale(init_scale=4.0))
    optimizer.scale(torch.zeros(()))
    grad = torch.ones(8)
    grad[-1] = float("inf")
    param.grad = distribute_tensor(grad, mesh, [Shard(0)])
    optimizer.unscale_()
    unscaled = full(param.grad).clone()
    param.grad.to_local().nan_to_num_(posinf=0.0)
    optimizer.step()
    return (
        unscaled,
        full(param.detach()),
        float(optimizer.engine.buffers.current_scale),
        bool(optimizer.stats.found_inf),
    )


def test_an_inf_that_one_ranks_unscale_saw_skips_on_every_rank(workers):
    for unscaled, param, scale, found_inf in workers.run(2, unscale_and_repair):
        assert unscaled[:7].tolist() == [0.25] * 7
        assert param.tolist() == [1.0] * 8
        assert (scale, found_inf) == (2.0, True)
