"""The optimizers that the demo compares, each behind the same two calls.

`TorchRecipe` is what people write today: AdamW, torch's `clip_grad_norm_`, and torch's GradScaler for float16.
`GradopsRecipe` is the same AdamW after the one line.
"""

import math
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

import gradops


@dataclass(frozen=True)
class Update:
    """What one optimizer step did: the norm before clipping (inf or NaN when skipped) and its time."""

    grad_norm: float
    skipped: bool
    seconds: float


class Recipe(Protocol):
    """An optimizer with its clipping and its loss scaling."""

    @property
    def optimizer(self) -> torch.optim.AdamW: ...

    def backward(self, loss: Tensor) -> None: ...

    def update(self) -> Update: ...


class TorchRecipe:
    """AdamW (fused), optionally with torch's gradient clipping and loss scaling.

    Args:
        network: the network to train.
        lr: learning rate.
        scaled: scale the loss dynamically, for float16.
        max_norm: clip the gradients to this global norm.
    """

    def __init__(self, network: nn.Module, lr: float, scaled: bool, max_norm: float | None = None) -> None:
        self.parameters = list(network.parameters())
        self.optimizer = torch.optim.AdamW(network.named_parameters(), lr=lr, fused=True)
        self.scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        self.max_norm = max_norm

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def update(self) -> Update:
        scale = self.scaler.get_scale()
        # Outside the clock: AdamW alone needs no norm, only our record of it does.
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
    """AdamW wrapped by gradops: clipping, loss scaling and the cap on the relative step, all in one pass.

    Args:
        network: the network to train.
        lr: learning rate.
        scaled: scale the loss dynamically, for float16.
        max_norm: clip the gradients to this global norm.
        max_relative_step: cap on each tensor's step, relative to its own size.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float,
        scaled: bool,
        max_norm: float | None = None,
        max_relative_step: float | gradops.RelativeStepCap | None = None,
    ) -> None:
        optimizer = gradops.wrap(
            torch.optim.AdamW(network.named_parameters(), lr=lr),
            max_norm=max_norm,
            max_relative_step=max_relative_step,
            loss_scale="dynamic" if scaled else None,
        )
        assert isinstance(optimizer, gradops.AdamW)
        self.optimizer = optimizer

    def backward(self, loss: Tensor) -> None:
        self.optimizer.backward(loss)

    def update(self) -> Update:
        start = time.perf_counter()
        self.optimizer.step()
        seconds = time.perf_counter() - start
        stats = self.optimizer.stats
        return Update(float(stats.grad_norm), bool(stats.found_inf), seconds)
