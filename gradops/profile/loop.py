"""The two training loops that are compared, each phase in a range of its own."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.profiler import record_function

import gradops
from gradops.one_pass.one_pass import OnePass
from gradops.profile.training import Training

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# In a step's order. What is not one of them is "other".
PHASES = ("forward", "backward", "unscale", "norm", "clip", "optimizer", "scale update", "zero_grad")
UPDATE = PHASES[2:7]
NAMES = ("torch", "gradops")


def step_range(name: str) -> str:
    """The range around one whole step of a loop."""
    return f"{name} step"


@dataclass(frozen=True)
class Settings:
    """What both loops do.

    Attributes:
        device: "cpu" or "cuda".
        precision: a key of `PRECISIONS`; anything but fp32 runs under autocast, and fp16 scales the loss.
        accumulate: batches whose gradients make one step.
        max_norm: the gradients' norm is clipped to it.
    """

    device: str = "cpu"
    precision: str = "fp32"
    accumulate: int = 1
    max_norm: float = 1.0

    @property
    def scaled(self) -> bool:
        return self.precision == "fp16"

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device, PRECISIONS[self.precision], enabled=self.precision != "fp32")


@dataclass(frozen=True)
class Record:
    """One step: `nonfinite` has the count of inf and NaN elements by parameter, None where nobody counts them."""

    seconds: float
    loss: float
    loss_scale: float
    skipped: bool
    nonfinite: dict[str, int] | None = None


class Loop:
    """A training, stepped; subclasses do what comes after the backward pass."""

    name: str

    def __init__(self, training: Training, settings: Settings) -> None:
        self.training, self.settings = training, settings
        self.params = [param for group in training.optimizer.param_groups for param in group["params"]]
        self._batches: Iterator[tuple[Tensor, Tensor]] = cycle(training.batches)
        self.range: Callable[[str], AbstractContextManager[Any]] = nullcontext
        self.prepare()

    def prepare(self) -> None:
        """What is made once."""

    def scale(self, loss: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self) -> None:
        raise NotImplementedError

    def record(self, seconds: float, loss: float, scale: float) -> Record:
        raise NotImplementedError

    def loss_scale(self) -> float:
        raise NotImplementedError

    def profiled(self, on: bool) -> None:
        """Opens ranges, or none, in the steps to come."""
        self.range = record_function if on else nullcontext

    def step(self) -> Tensor:
        """One step over all its batches; the last batch's loss."""
        training, settings = self.training, self.settings
        with self.range(step_range(self.name)):
            for _ in range(settings.accumulate):
                inputs, targets = next(self._batches)
                with self.range("forward"), settings.autocast():
                    loss = training.loss(training.model(inputs), targets)
                with self.range("backward"):
                    self.scale(loss / settings.accumulate).backward()
            self.update()
            with self.range("zero_grad"):
                training.optimizer.zero_grad()
        return loss.detach()

    def timed_step(self) -> Record:
        """One step and what is known of it, which is read when the clock has stopped."""
        scale = self.loss_scale()
        _wait(self.settings.device)
        start = time.perf_counter()
        loss = self.step()
        _wait(self.settings.device)
        return self.record(time.perf_counter() - start, float(loss), scale)


class TorchLoop(Loop):
    """torch's: GradScaler for fp16, clip_grad_norm_ in its two halves, and the optimizer as it is."""

    name = "torch"

    def prepare(self) -> None:
        self.scaler = torch.amp.GradScaler(self.settings.device, enabled=self.settings.scaled)

    def scale(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss)

    def update(self) -> None:
        optimizer, params = self.training.optimizer, self.params
        if self.settings.scaled:
            with self.range("unscale"):
                self.scaler.unscale_(optimizer)
        with self.range("norm"):
            norm = nn.utils.get_total_norm([param.grad for param in params if param.grad is not None])
        with self.range("clip"):
            nn.utils.clip_grads_with_norm_(params, self.settings.max_norm, norm)
        with self.range("optimizer"):
            self.scaler.step(optimizer)
        if self.settings.scaled:
            with self.range("scale update"):
                self.scaler.update()

    def loss_scale(self) -> float:
        return self.scaler.get_scale()

    def record(self, seconds: float, loss: float, scale: float) -> Record:
        return Record(seconds, loss, scale, skipped=self.scaler.get_scale() < scale)


class GradopsLoop(Loop):
    """The same optimizer after the one line."""

    name = "gradops"

    def prepare(self) -> None:
        optimizer: Any = self.training.optimizer
        loss_scale: Literal["dynamic"] | None = "dynamic" if self.settings.scaled else None
        if not isinstance(optimizer, OnePass):
            gradops.wrap(optimizer)
        optimizer.max_norm, optimizer.loss_scale = self.settings.max_norm, loss_scale
        self.optimizer = optimizer

    def scale(self, loss: Tensor) -> Tensor:
        scaled: Tensor = self.optimizer.scale(loss)
        return scaled

    def update(self) -> None:
        with self.range("optimizer"):
            self.optimizer.step()

    def loss_scale(self) -> float:
        return math.nan  # `record` takes it from the statistics

    def record(self, seconds: float, loss: float, scale: float) -> Record:
        stats = self.optimizer.stats.cpu()
        counts = zip(stats.names, stats.nonfinite.tolist(), strict=True)
        nonfinite = {name: count for name, count in counts if count}
        return Record(seconds, loss, float(stats.loss_scale), bool(stats.found_inf), nonfinite)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
