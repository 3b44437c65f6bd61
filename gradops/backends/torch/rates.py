"""Each tensor's learning rate: the group's, what a guard leaves of it, and the bound of `max_relative_step`."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradops.backends.call import Row, state_of
from gradops.backends.torch.math import wide_dtype
from gradops.backends.torch.update import Options
from gradops.policies.relative_step import RelativeStepCap


@dataclass(frozen=True)
class Sizes:
    """What a cap compares of a group's rows: one value a row, in the wide dtype.

    Attributes:
        weights: the RMS of what is updated.
        grads: the RMS of the gradient, clipped; None where the size of an update does not depend on it.
    """

    weights: Tensor
    grads: Tensor | None


def rates(
    lr: float | Tensor, lr_factor: Tensor, rows: list[Row], limits: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's learning rate and the number of its update, in the wide dtype, and whether its rate was capped.

    Args:
        lr: the group's.
        lr_factor: the guard's, 0-d.
        rows: of one group; at least one.
        limits: of their rates; None for none.
    """
    step = _numbers(rows)
    if isinstance(lr, Tensor) and lr.device == step.device:
        rate = lr.reshape(()).to(step.dtype).expand_as(step)
    else:
        rate = torch.full_like(step, float(lr))
    rate = rate * lr_factor
    if limits is None:
        return rate, step, torch.zeros_like(step, dtype=torch.bool)
    return torch.minimum(rate, limits), step, limits < rate


def limits_of(cap: RelativeStepCap, rows: list[Row], sizes: Sizes, options: Options) -> Tensor:
    """The largest rate that the cap allows each row of one group; see `gradops.RelativeStepCap`."""
    limits = cap.cap * sizes.weights.clamp(min=cap.floor)
    if cap.warmup_steps:
        limits = limits * (_numbers(rows) / cap.warmup_steps).clamp(max=1.0)
    if sizes.grads is None:
        return limits
    decay = 0.0 if options.decoupled else options.weight_decay
    per_rate = sizes.grads + decay * sizes.weights + options.l1
    return torch.where(per_rate > 0.0, limits / per_rate, torch.inf)


def _numbers(rows: list[Row]) -> Tensor:
    """The number of each row's update, from 1."""
    steps = torch.stack([state_of(row)["step"].reshape(()) for row in rows])
    return steps.to(wide_dtype(rows[0].param.device)) + 1
