"""The trainings behind the pictures: the demo's canvases of real digits and its networks, one schedule, fixed seeds."""

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradops.demo import make_task
from gradops.demo.training import Task, batches

SEED = 0


@cache
def task(lr: float, steps: int = 320) -> Task:
    """The demo's task: one cycle up to `lr`."""
    return make_task(SEED, steps, lr)


def loss_of(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The multi-label loss of a batch."""
    canvases, labels = batch
    return F.binary_cross_entropy_with_logits(network(canvases), labels)


def trained(
    network: nn.Module, optimizer: torch.optim.Optimizer, task: Task, steps: int | None = None
) -> Iterator[float]:
    """Trains, and yields the loss of each step once it is taken."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, task.lr, total_steps=task.steps)
    for _, index in zip(range(steps or task.steps), batches(task), strict=False):
        loss = loss_of(network, task.train.batch(index))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def gradient(network: nn.Module, batch: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The gradients of a batch's loss, one per parameter."""
    loss = loss_of(network, batch)
    return list(torch.autograd.grad(loss, list(network.parameters())))
