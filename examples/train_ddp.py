"""DistributedDataParallel: the wrapped optimizer takes the same step on every rank; accumulation without synchronising.

Runs as it stands, with two processes of its own; or by `torchrun --nproc-per-node=4 examples/train_ddp.py`.
"""

import contextlib
import os
import tempfile

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gradops

STEPS, MICRO_BATCHES = 30, 2


def train():
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    inputs = torch.randn(512, 20)
    targets = torch.sin(inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]
    model = DistributedDataParallel(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1)))

    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    optimizer = gradops.wrap(optimizer, max_norm=1.0, loss_scale="dynamic")

    for step in range(STEPS):
        rows = torch.randperm(len(inputs))[:256].chunk(world)[rank]  # the same permutation on every rank
        for index, part in enumerate(rows.chunk(MICRO_BATCHES)):
            last = index == MICRO_BATCHES - 1
            with contextlib.nullcontext() if last else model.no_sync():
                with torch.autocast("cpu", dtype=torch.float16):
                    output = model(inputs[part])
                loss = F.mse_loss(output.float(), targets[part]) / MICRO_BATCHES
                optimizer.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if rank == 0 and step % 10 == 9:
            stats = optimizer.stats.cpu()
            print(
                f"step {step + 1}: loss {loss.item() * MICRO_BATCHES:.3f}, norm before clipping {stats.grad_norm:.3f}"
            )

    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    every = [torch.empty_like(weights) for _ in range(world)]
    dist.all_gather(every, weights)
    assert all(torch.equal(of_rank, weights) for of_rank in every), "ranks must not drift apart"


def run(rank, world, store):
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
    train()
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun's
        dist.init_process_group("gloo")
        train()
        dist.destroy_process_group()
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(run, (2, f"{folder}/store"), nprocs=2)
