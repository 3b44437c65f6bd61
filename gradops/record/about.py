"""What a record says of the model and the optimizer beside the numbers of each step."""

import weakref
from typing import Any

import torch
from torch import nn

from gradops.one_pass.one_pass import OnePass
from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import loss_scale_policy


def _named(model: nn.Module | None) -> dict[str, nn.Module]:
    return {} if model is None else {name: module for name, module in model.named_modules() if name}


def types_of(model: nn.Module | None) -> dict[str, str]:
    """The class of each module, by name."""
    return {name: type(module).__name__ for name, module in _named(model).items()}


def with_running_statistics(model: nn.Module | None) -> dict[str, "weakref.ref[nn.Module]"]:
    """The modules, by name, whose statistics the forward pass of a skipped step has changed."""
    named = _named(model).items()
    return {name: weakref.ref(module) for name, module in named if getattr(module, "running_mean", None) is not None}


def protected(optimizer: OnePass) -> set[nn.Module | None]:
    """The modules whose buffers a skipped step puts back."""
    protect = optimizer.protect
    roots = [protect] if isinstance(protect, nn.Module) else list(protect or ())
    return {None, *(module for root in roots for module in root.modules())}


def about(optimizer: OnePass) -> dict[str, Any]:
    """The settings and the machinery of a run."""
    policy = loss_scale_policy(optimizer.loss_scale)
    dynamic = isinstance(policy, DynamicLossScale)
    return {
        "optimizer": type(optimizer).__name__,
        "by_gradient": not optimizer.rule.scale_free or None,
        "max_norm": optimizer.max_norm,
        "clip_value": optimizer.clip_value,
        "clip_mode": optimizer.clip_mode if optimizer.clip_mode != "norm" else None,
        "protect": optimizer.protect is not None or None,
        "ema": optimizer.ema and str(optimizer.ema),
        "max_relative_step": optimizer.max_relative_step and str(optimizer.max_relative_step),
        "loss_scale": str(policy) if dynamic else policy,
        "min_scale": policy.min_scale if isinstance(policy, DynamicLossScale) else None,
        "torch": torch.__version__,
        "device": str(optimizer.engine.buffers.scalars.device),
        "backend": optimizer.stats.backend,
    }
