"""FSDP2: parameters, gradients and moments sharded over the ranks, clipped by the norm of the whole.

Runs as it stands, with two processes of its own; or by `torchrun --nproc-per-node=4 examples/train_fsdp2.py`.
"""

import os
import tempfile

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

import gradops

STEPS = 30


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh())
    fully_shard(model, mesh=mesh())
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)  # after sharding, which replaces the parameters
    return model, gradops.wrap(optimizer, max_norm=1.0, max_relative_step=0.1)


def mesh():
    return dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))


def train(folder):
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs = torch.randn(512, 20, generator=torch.Generator().manual_seed(1))
    targets = torch.sin(inputs[:, :1]) + inputs[:, 1:2] * inputs[:, 2:3]
    model, optimizer = build()
    for step in range(STEPS):
        rows = torch.arange(256).roll(-32 * step).chunk(world)[rank]
        loss = F.mse_loss(model(inputs[rows]), targets[rows])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            gradops.save_checkpoint(f"{folder}/run", model, optimizer)
            if rank == 0:
                stats = optimizer.stats.cpu()  # of the full parameters, the same on every rank
                worst = stats.names[stats.norms.argmax()]
                print(f"step {step + 1}: loss {loss:.3f}, norm {stats.grad_norm:.3f}, largest in {worst}")

    resumed, resumed_optimizer = build()  # with another number of ranks just as well
    gradops.load_checkpoint(f"{folder}/run", resumed, resumed_optimizer)
    for mine, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine.to_local(), theirs.to_local())


def run(rank, world, folder):
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    train(folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # torchrun's
        dist.init_process_group("gloo")
        train("checkpoints")
        dist.destroy_process_group()
    else:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(run, (2, folder), nprocs=2)
