"""One parameter's update in torch's own operations: what every rule shares before and after the rule itself."""

from typing import Any

import torch
from torch import Tensor

from gradops.backends.torch.math import arithmetic_of


def update_(
    rule: Any, param: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any], lr: Tensor, coefs: Any,
    skip: Tensor
) -> None:  # fmt: skip
    """Updates a parameter and its state in place, or leaves them.

    Args:
        rule: a module of `gradops.backends.torch.rules`.
        param: the parameter.
        grad: unscaled and clipped, in its arithmetic's dtype.
        state: of the parameter.
        group: the parameter's group.
        lr: the rate that this parameter takes; 0-d.
        coefs: the rule's, for this parameter.
        skip: bool, 0-d; whether everything stays as it was.
    """
    updated, compensation = state.get("master", param), state.get("compensation")
    weight = updated.to(arithmetic_of(param))
    if compensation is not None:
        weight = weight + compensation
    weight, grad = _regularise(weight, grad.to(weight.dtype), group, lr)
    weight, moments = rule.update(weight, grad, state, group, coefs)
    for key, value in moments.items():
        torch.where(skip, state[key], value.to(state[key].dtype), out=state[key])
    if updated is not param:
        torch.where(skip, updated, weight, out=updated)
    if compensation is not None:
        left = weight - weight.to(param.dtype)
        left = torch.where(left.isfinite(), left, 0.0).to(param.dtype)
        torch.where(skip, compensation, left, out=compensation)
    torch.where(skip, param, weight.to(param.dtype), out=param)


def _regularise(weight: Tensor, grad: Tensor, group: dict[str, Any], lr: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the gradient for `maximize`, and adds L1 and the weight decay, to the gradient or to the weights."""
    weight_decay = float(group["weight_decay"])
    if group["maximize"]:
        grad = -grad
    if group["l1"]:
        grad = grad.add(weight.sign(), alpha=float(group["l1"]))
    if weight_decay and not group["decoupled_weight_decay"]:
        grad = grad.add(weight, alpha=weight_decay)
    if weight_decay and group["decoupled_weight_decay"]:
        weight = weight.sub(weight.mul((lr * weight_decay).to(weight.dtype)))
    return weight, grad
