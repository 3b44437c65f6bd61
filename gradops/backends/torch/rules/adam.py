"""Adam, AMSGrad and AdamW in torch's own operations; see csrc/math/adam_step.h."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradops.backends.torch.math import arithmetic_of


@dataclass(slots=True)
class Coefs:
    """What a parameter's update takes besides its group's hyper-parameters; 0-d, in its arithmetic's dtype."""

    step_size: Tensor  # lr / (1 - beta1^step)
    inv_bias_correction2_sqrt: Tensor  # 1 / sqrt(1 - beta2^step)


def coefs(params: list[Tensor], group: dict[str, Any], lr: Tensor, step: Tensor) -> list[Coefs]:
    """Of each of a group's parameters.

    Args:
        params: the parameters.
        group: the param group.
        lr: the rate that each takes, in the wide dtype.
        step: the number of each one's update, from 1, in the wide dtype.
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    step_size = lr / _bias_correction(beta1, step)
    inv_bias_correction2_sqrt = _bias_correction(beta2, step).rsqrt()
    scalars = torch.stack([step_size, inv_bias_correction2_sqrt], dim=1)
    dtypes = [arithmetic_of(param) for param in params]
    rounded = {dtype: scalars.to(dtype).unbind() for dtype in set(dtypes)}
    return [Coefs(*rounded[dtype][index].unbind()) for index, dtype in enumerate(dtypes)]


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """1 - beta^step; by expm1, because float32 would lose it for the first steps."""
    return -torch.expm1(step * (math.log(beta) if beta > 0 else -math.inf))


def update(
    weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], coefs: Coefs
) -> tuple[Tensor, dict[str, Tensor]]:
    """The new weights and moments; nothing is written."""
    beta1, beta2 = (float(beta) for beta in group["betas"])
    # From the end that weighs more, as torch.lerp.
    begin, coef = (state["exp_avg"], 1.0 - beta1) if beta1 > 0.5 else (grad, -beta1)
    exp_avg = grad.sub(state["exp_avg"]).mul_(coef).add_(begin)
    # In this order, or the square of a huge gradient overflows.
    exp_avg_sq = grad.mul(1.0 - beta2).mul_(grad).add_(state["exp_avg_sq"], alpha=beta2)
    moments = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    second = exp_avg_sq
    if group["amsgrad"]:
        second = moments["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], second)
    denom = second.sqrt().mul_(coefs.inv_bias_correction2_sqrt).add_(float(group["eps"]))
    return weight.sub(exp_avg.div(denom).mul_(coefs.step_size)), moments
