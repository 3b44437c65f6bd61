"""The learning-rate range test (Smith 2015): train while the rate grows, see where the loss falls and where it goes."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gradops.one_pass.one_pass import OnePass
from gradops.optim.wrap import rule_for
from gradops.range_test.curve import LRCurve, LRStep
from gradops.range_test.snapshot import restored


def lr_find(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: Callable[[Any, Any], Tensor],
    loader: Iterable[Any],
    *,
    start_lr: float = 1e-6,
    end_lr: float = 10.0,
    num_steps: int = 100,
    stop_ratio: float = 4.0,
    scaler: torch.amp.GradScaler | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> LRCurve:
    """Trains a few steps while the learning rate grows exponentially, and puts everything back as it was.

    Weights, moments, loss scale, counters, statistics, gradients, buffers, random numbers and the attributes that
    learning-rate schedulers use are afterwards what they were before, bit for bit, also after an error or a Ctrl-C. A
    `gradops.Recorder` sees nothing of it. Each step waits for the device. Groups keep the ratio of their learning
    rates; the curve has the largest.

    Source: Smith 2015, Cyclical Learning Rates for Training Neural Networks, section 3.3.

    Args:
        model: called with a batch's inputs.
        optimizer: torch's or gradops', whose clipping, capping and loss scale then take part.
        loss_fn: called with the model's output and a batch's last item; returns the mean loss.
        loader: gives batches `(*inputs, targets)`, moved to the parameters' device; begun again when it ends.
        start_lr: first learning rate; positive.
        end_lr: last learning rate; above `start_lr`.
        num_steps: steps; at least 10.
        stop_ratio: the test ends when the smoothed loss is over this many times its lowest; above 1, inf for never.
        scaler: the GradScaler of code that uses one.
        autocast_dtype: float16 or bfloat16 to run model and loss under autocast.

    Returns:
        The curve, with `suggestion`, `notes()` and `plot()`.

    Raises:
        TypeError: the loader can be read only once, or the optimizer is none of torch's, needs a closure or has no
            learning rate.
        ValueError: an argument is out of its range, or the loader is empty.
    """
    _check(optimizer, loader, start_lr, end_lr, num_steps, stop_ratio)
    modules = [part for part in (model, loss_fn) if isinstance(part, nn.Module)]
    rates = [start_lr * (end_lr / start_lr) ** (i / (num_steps - 1)) for i in range(num_steps)]
    rule = rule_for(optimizer)
    curve = LRCurve(
        max_norm=getattr(optimizer, "max_norm", None),
        stop_ratio=stop_ratio,
        optimizer=type(optimizer).__name__,
        scale_free=rule is not None and rule.scale_free,
    )
    with ExitStack() as stack:
        if isinstance(optimizer, OnePass):
            for watcher in optimizer.engine.watchers:
                stack.enter_context(watcher.paused())
        stack.enter_context(restored(modules, optimizer, *filter(None, [scaler]), loader=loader))
        if not model.training:
            model.train()
        trial = _Trial(model, optimizer, loss_fn, scaler, autocast_dtype)
        for lr, batch in zip(rates, _endless(loader), strict=False):
            curve.append(trial.step(lr, batch))
            if curve.diverged:
                break
    if not curve.steps:
        raise ValueError("the loader is empty")
    return curve


def _check(optimizer: Any, loader: Any, start_lr: float, end_lr: float, num_steps: int, stop_ratio: float) -> None:
    _check_optimizer(optimizer)
    if isinstance(loader, Iterator):
        raise TypeError(
            "the loader is an iterator, and the batches that the test takes from it could not be put back; pass the "
            "DataLoader, or a list of batches"
        )
    if not 0 < start_lr < end_lr < math.inf:
        raise ValueError(f"start_lr and end_lr must be positive, finite and ascending, got {start_lr} and {end_lr}")
    if not num_steps >= 10:
        raise ValueError(f"num_steps must be at least 10, got {num_steps}")
    if not stop_ratio > 1:
        raise ValueError(f"stop_ratio must be above 1, got {stop_ratio}")


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, torch.optim.Optimizer):
        held = next((name for name in ("opt", "optimizer") if hasattr(optimizer, name)), None)
        got, way_on = type(optimizer).__name__, f"pass its .{held}" if held else "pass one"
        if isinstance(optimizer, type):
            got, way_on = f"the class {optimizer.__name__}", "pass an instance"
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {got}; {way_on}")
    needs = inspect.signature(optimizer.step).parameters.get("closure")
    if needs is not None and needs.default is inspect.Parameter.empty:
        raise TypeError(
            f"{type(optimizer).__name__}'s step needs a closure, which lr_find does not give it; find the rate with "
            "torch.optim.SGD or AdamW"
        )
    if any("lr" not in group for group in optimizer.param_groups):
        raise TypeError(f"{type(optimizer).__name__} has no learning rate (lr) in its groups, so there is none to find")


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            return


class _Trial:
    """Steps at given learning rates."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: Callable[[Any, Any], Tensor],
        scaler: torch.amp.GradScaler | None,
        autocast_dtype: torch.dtype | None,
    ) -> None:
        self.model, self.optimizer, self.loss_fn, self.scaler = model, optimizer, loss_fn, scaler
        self.params = [param for group in optimizer.param_groups for param in group["params"]]
        self.device = self.params[0].device
        self.dtype = autocast_dtype
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.shares = [rate / max(rates) if max(rates) > 0 else 1.0 for rate in rates]

    def step(self, lr: float, batch: Any) -> LRStep:
        """One training step at `lr`."""
        self._set_lr(lr)
        *inputs, targets = _moved(batch, self.device)
        with torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else nullcontext():
            outputs = self.model(*inputs)
            loss = self.loss_fn(outputs, targets)
        self.optimizer.zero_grad()
        measured = self._one_pass(loss) if isinstance(self.optimizer, OnePass) else self._torchs(loss)
        # Inside somebody's autocast the cached half-precision weights would be those of the first step.
        torch.clear_autocast_cache()
        return LRStep(lr=lr, loss=float(loss.detach()), output_spread=_spread(outputs), **measured)

    def _set_lr(self, lr: float) -> None:
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * share)
            else:
                group["lr"] = lr * share

    def _one_pass(self, loss: Tensor) -> dict[str, Any]:
        optimizer: Any = self.optimizer
        if self.scaler is None:
            optimizer.backward(loss)
            optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
            self.scaler.update()
        stats = optimizer.stats
        return {
            "grad_norm": float(stats.grad_norm),
            "clipped": bool(stats.clip_coef < 1),
            "capped": bool(stats.capped.any()),
            "skipped": bool(stats.found_inf),
        }

    def _torchs(self, loss: Tensor) -> dict[str, Any]:
        scaler = self.scaler or torch.amp.GradScaler(self.device.type, enabled=False)
        scaler.scale(loss).backward()
        grads = [param.grad for param in self.params if param.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(grads)) / (scaler.get_scale() or 1.0)
        scaler.step(self.optimizer)
        scaler.update()
        skipped = scaler.is_enabled() and not math.isfinite(norm)
        return {"grad_norm": norm, "clipped": False, "capped": False, "skipped": skipped}


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_moved(item, device) for item in value]
    return value


def _spread(outputs: Any) -> float:
    """How much the outputs differ from input to input: their standard deviation over the batch, on average."""
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) < 2:
        return math.nan
    return float(outputs.detach().float().std(dim=0).mean())
