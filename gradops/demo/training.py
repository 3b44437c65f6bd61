"""One training run, from a seed to its records."""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gradops.demo.digits import Canvases
from gradops.demo.network import ResidualNet
from gradops.demo.recipes import Recipe

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAST_STEPS = 10
SPIKE = 10.0
SPIKE_WINDOW = 20
# A few steps have no usual norm yet: sound runs reach twenty times their median in the first twenty.
EARLY_SPIKE, SPIKE_LEAST = 100.0, 5


@dataclass(frozen=True)
class Task:
    """What every run of a comparison shares.

    Args:
        train: canvases to train on.
        held_out: canvases of digits that are in no training canvas.
        seed: of the weights and of the order of the canvases.
        steps: length of the run and of its one learning-rate cycle.
        lr: peak of the cycle.
        precision: a key of `PRECISIONS`; anything but fp32 runs under autocast.
        batch_size: canvases per step.
    """

    train: Canvases
    held_out: Canvases
    seed: int = 0
    steps: int = 320
    lr: float = 0.1
    precision: str = "fp32"
    batch_size: int = 64

    @property
    def scaled(self) -> bool:
        """Whether the loss has to be scaled, so that small gradients do not vanish."""
        return self.precision == "fp16"

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast("cpu", dtype=PRECISIONS[self.precision], enabled=self.precision != "fp32")


@dataclass(frozen=True)
class Step:
    """One step. `dead_units` of the head answered no canvas of the batch; times are in seconds."""

    loss: float
    grad_norm: float
    dead_units: int
    skipped: bool
    seconds: float
    optimizer_seconds: float


@dataclass
class Run:
    """A recipe's name and the records of its steps; `accuracy` is per label, on held-out digits."""

    name: str
    units: int
    steps: list[Step] = field(default_factory=list)
    accuracy: float = math.nan

    @property
    def skipped(self) -> int:
        return sum(step.skipped for step in self.steps)

    @property
    def final_loss(self) -> float:
        """Mean loss of the last ten steps."""
        last = [step.loss for step in self.steps[-LAST_STEPS:]]
        return sum(last) / len(last)

    @property
    def largest_norm(self) -> float:
        """The largest finite gradient norm."""
        return max((step.grad_norm for step in self.steps if math.isfinite(step.grad_norm)), default=math.nan)

    @property
    def first_spike(self) -> int | None:
        """The first step, from 1, whose norm is over ten times the median of the twenty before it.

        With fewer before it, it must be over a hundred times, and with fewer than five, no number.
        """
        for last, step in enumerate(self.steps):
            before = [earlier.grad_norm for earlier in self.steps[max(0, last - SPIKE_WINDOW) : last]]
            if last < SPIKE_LEAST:
                before = []
            usual = statistics.median([norm for norm in before if math.isfinite(norm)] or [math.inf])
            # A NaN is a spike as well. A step that the loss scale gave up is not.
            most = (SPIKE if last >= SPIKE_WINDOW else EARLY_SPIKE) * usual
            calm = math.isfinite(step.grad_norm) and step.grad_norm <= most
            if not step.skipped and not calm:
                return last + 1
        return None


def train(task: Task, run: Run, network: ResidualNet, recipe: Recipe, report: Callable[[Run], None]) -> None:
    """Trains `network`, appends each step to `run.steps`, calls `report` after it, and measures the accuracy.

    The learning rate follows OneCycleLR up to `task.lr`, with its momentum where the optimizer has one.
    """
    has_momentum = not {"betas", "momentum"}.isdisjoint(recipe.optimizer.defaults)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        recipe.optimizer, task.lr, total_steps=task.steps, cycle_momentum=has_momentum
    )
    for index in batches(task):
        start = time.perf_counter()
        canvases, labels = task.train.batch(index)
        with task.autocast():
            units = network.hidden_units(canvases)
            logits = network.labels(units)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        recipe.optimizer.zero_grad()
        recipe.backward(loss)
        update = recipe.update()
        with warnings.catch_warnings():
            # GradScaler leaves out a first step that overflows, and the schedule takes that for a mistake.
            warnings.filterwarnings("ignore", message=r".*lr_scheduler.step\(\)")
            schedule.step()
        seconds = time.perf_counter() - start
        # Not `units == 0`: a unit that gives NaN is as dead as one that gives zero.
        dead_units = int((~(units > 0).any(dim=0)).sum())
        run.steps.append(Step(loss.item(), update.grad_norm, dead_units, update.skipped, seconds, update.seconds))
        report(run)
    run.accuracy = accuracy(task, network)


def batches(task: Task) -> Iterator[Tensor]:
    """Yields the indices of one batch per step; each epoch is a new order, the same for the same seed."""
    generator = torch.Generator().manual_seed(task.seed)
    order = torch.empty(0, dtype=torch.int64, device="cpu")
    for _ in range(task.steps):
        if len(order) < task.batch_size:
            following = torch.randperm(len(task.train), generator=generator, dtype=torch.int64, device="cpu")
            order = torch.cat([order, following])
        yield order[: task.batch_size]
        order = order[task.batch_size :]


@torch.no_grad()
def accuracy(task: Task, network: ResidualNet) -> float:
    """Share of the labels of the held-out canvases that are right."""
    network.eval()
    right = 0
    for index in torch.arange(len(task.held_out), dtype=torch.int64, device="cpu").split(task.batch_size):
        canvases, labels = task.held_out.batch(index)
        with task.autocast():
            logits = network(canvases)
        right += int(((logits > 0) == labels.bool()).sum())
    return right / task.held_out.labels.numel()


def guessing_loss(task: Task) -> float:
    """Loss of the best answer that does not look at the canvas: each label's share in the training canvases."""
    shares = task.train.labels.mean(dim=0, keepdim=True)
    return float(F.binary_cross_entropy(shares.expand_as(task.train.labels), task.train.labels))
