"""csrc/math/ema.h in torch's own operations: how much of what a step stored enters the average, and the average."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gradops.backends.call import Row, state_of
from gradops.policies.ema import WeightEma


def ema_weights(ema: WeightEma, step: Tensor) -> Tensor:
    """What each tensor's average takes of it in its update number `step`: `1 - d`, 0 where this one is left out.

    Args:
        ema: the policy.
        step: counts from 1, in the wide dtype.
    """
    turn = step / ema.every
    n = turn - ema.start
    decay = torch.full_like(step, ema.decay)
    if ema.inv_gamma is not None:
        warm = 1.0 - (1.0 + n.clamp(min=0.0) / ema.inv_gamma) ** -ema.power
        decay = torch.minimum(decay, warm).clamp(min=ema.min_decay)
    elif ema.tau is not None:
        decay = decay * (1.0 - torch.exp(-n / ema.tau))
    weight = torch.where(n > 0.0, 1.0 - decay, 1.0)
    return torch.where(turn == turn.floor(), weight, 0.0)


def average_(average: Tensor, values: Tensor, weight: Tensor, skip: Tensor | None = None) -> None:
    """Moves an average to the values by the weight, 0-d; neither it nor a skipped step waits for the device."""
    values, weight = values.to(average.dtype), weight.to(average.dtype)
    away = values - average
    # From the end that weighs more, so that a weight of 1 copies.
    moved = torch.where(weight < 0.5, average + weight * away, values - (1.0 - weight) * away)
    leaves = weight == 0.0 if skip is None else skip | (weight == 0.0)
    torch.where(leaves, average, moved, out=average)


def average_rows_(ema: WeightEma | None, rows: Sequence[Row], step: Tensor, skip: Tensor) -> None:
    """Averages what the update number `step` of each row has stored; nothing without a policy."""
    if ema is None:
        return
    for row, weight in zip(rows, ema_weights(ema, step), strict=True):
        average_(state_of(row)["ema"], row.updated, weight, skip)
