"""The optimizers that the demo compares, each behind the same two calls.

`TorchRecipe` is what people write today: torch's optimizer, its `clip_grad_norm_`, and its GradScaler for float16.
`GradopsRecipe` is the same optimizer after the one line.
"""

import inspect
import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import gradops
from gradops.one_pass.one_pass import OnePass


@dataclass(frozen=True)
class Update:
    """What one optimizer step did: the norm before clipping (inf or NaN when skipped) and its time."""

    grad_norm: float
    skipped: bool
    seconds: float


class Recipe(Protocol):
    """An optimizer with its clipping and its loss scaling."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    def backward(self, loss: Tensor) -> None: ...

    def update(self) -> Update: ...


class TorchRecipe:
    """The native optimizer (fused if it can be), optionally with torch's gradient clipping and loss scaling.

    Args:
        network: the network to train.
        lr: learning rate.
        scaled: scale the loss dynamically, for float16.
        max_norm: clip the gradients to this global norm.
        theirs: class of torch or timm.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        scaled: bool,
        max_norm: float | None = None,
        theirs: Any = torch.optim.AdamW,
    ) -> None:
        self.parameters = list(network.parameters())
        fused = {"fused": True} if "fused" in inspect.signature(theirs).parameters else {}
        self.optimizer: torch.optim.Optimizer = theirs(network.named_parameters(), lr=lr, **fused)
        self.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        self.max_norm = max_norm

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self) -> Update:
        scale = self.scaler.get_scale()
        # Outside the clock: the optimizer alone needs no norm, only our record of it does.
        norm = float(torch.nn.utils.get_total_norm(self._grads())) / (scale or 1.0)
        start = time.perf_counter()
        if self.max_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        seconds = time.perf_counter() - start
        return Update(norm, self.scaler.is_enabled() and not math.isfinite(norm), seconds)

    def _grads(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


class GradopsRecipe:
    """Ours: clipping, loss scaling and the cap on the relative step, all in one pass.

    Args:
        network: the network to train.
        lr: learning rate.
        scaled: scale the loss dynamically, for float16.
        max_norm: clip the gradients to this global norm.
        max_relative_step: cap on each tensor's step, relative to its own size.
        ours: class of gradops.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        scaled: bool,
        max_norm: float | None = None,
        max_relative_step: float | gradops.RelativeStepCap | None = None,
        ours: type[OnePass] = gradops.AdamW,
    ) -> None:
        self.optimizer = ours(
            network.named_parameters(),
            lr=lr,
            max_norm=max_norm,
            max_relative_step=max_relative_step,
            loss_scale="dynamic" if scaled else None,
        )

    def backward(self, loss: Tensor) -> None:
        self.optimizer.backward(loss)

    def update(self) -> Update:
        start = time.perf_counter()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        stats = self.optimizer.stats
        return Update(float(stats.grad_norm), bool(stats.found_inf), seconds)
