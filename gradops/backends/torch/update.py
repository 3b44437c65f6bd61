"""One parameter's update in torch's own operations: what every rule shares before and after the rule itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradops.backends.torch.math import arithmetic_of
from gradops.update_rule import UpdateRule, number_of


@dataclass(frozen=True)
class Options:
    """What an update takes of a param group beside its rate, by the names of the operator `_update_`.

    Attributes:
        hyper: the rule's own numbers.
        weight_decay, decoupled, maximize, l1: what every rule's update begins with.
    """

    hyper: list[float]
    weight_decay: float = 0.0
    decoupled: bool = False
    maximize: bool = False
    l1: float = 0.0


def options_of(rule: UpdateRule, group: Mapping[str, Any]) -> Options:
    """The options of a param group with its "l1"."""
    return Options(
        hyper=rule.hyper_of(group),
        weight_decay=number_of(group, "weight_decay"),
        decoupled=rule.decouples(group),
        maximize=bool(group["maximize"]),
        l1=number_of(group, "l1"),
    )


@dataclass(slots=True)
class Tensors:
    """What an update writes of one parameter.

    Attributes:
        param: the parameter.
        moments: those that its group's updates have, in the rule's order.
        master: that is updated, where there is one; the parameter is it rounded.
        compensation: what rounding took off the parameter, where it is kept.
    """

    param: Tensor
    moments: list[Tensor]
    master: Tensor | None = None
    compensation: Tensor | None = None


def update_(
    rule: Any,
    tensors: Tensors,
    grad: Tensor,
    options: Options,
    lr: Tensor,
    coefs: Any,
    grad_factor: Tensor | None,
    skip: Tensor,
) -> None:
    """Updates a parameter and its state in place, or leaves them.

    Args:
        rule: a module of `gradops.backends.torch.rules`.
        tensors: of the parameter.
        grad: unscaled and clipped, in its arithmetic's dtype.
        options: of the parameter's group.
        lr: the rate that this parameter takes; 0-d.
        coefs: the rule's, for this parameter.
        grad_factor: what the regularised gradient is multiplied by, 0-d; None for 1.
        skip: bool, 0-d; whether everything stays as it was.
    """
    param, compensation = tensors.param, tensors.compensation
    updated = param if tensors.master is None else tensors.master
    weight = updated.to(arithmetic_of(param))
    if compensation is not None:
        weight = weight + compensation
    weight, grad = _regularise(weight, grad.to(weight.dtype), options, lr)
    if grad_factor is not None:
        grad = grad * grad_factor.to(grad.dtype)
    weight, moved = rule.update(weight, grad, tensors.moments, options.hyper, coefs)
    for moment, value in zip(tensors.moments, moved, strict=True):
        torch.where(skip, moment, value.to(moment.dtype), out=moment)
    if updated is not param:
        torch.where(skip, updated, weight, out=updated)
    if compensation is not None:
        left = weight - weight.to(param.dtype)
        left = torch.where(left.isfinite(), left, 0.0).to(param.dtype)
        torch.where(skip, compensation, left, out=compensation)
    torch.where(skip, param, weight.to(param.dtype), out=param)


def values_of(scalars: list[Tensor]) -> list[Tensor]:
    """The numbers that a rule's state has of each parameter beside its step, as one tensor; none for most rules."""
    return [torch.stack([scalar.reshape(()) for scalar in scalars])] if scalars else []


def move_scalars_(
    rule: Any, scalars: list[Tensor], values: list[Tensor], hyper: list[float], step: Tensor, skip: Tensor
) -> None:
    """Makes of these numbers what they are after the update, or leaves them.

    Args:
        rule: a module of `gradops.backends.torch.rules`.
        scalars: of a group's parameters.
        values: `values_of` them.
        hyper, step: as for the rule's `coefs`.
        skip: bool, 0-d; whether they stay as they were.
    """
    for value in values:
        moved = torch.where(skip, value, rule.next_scalar(hyper, step, value))
        for scalar, number in zip(scalars, moved.unbind(), strict=True):
            scalar.copy_(number.expand_as(scalar))


def _regularise(weight: Tensor, grad: Tensor, options: Options, lr: Tensor) -> tuple[Tensor, Tensor]:
    """Turns the gradient for `maximize`, and adds L1 and the weight decay, to the gradient or to the weights."""
    if options.maximize:
        grad = -grad
    if options.l1:
        grad = grad.add(weight.sign(), alpha=options.l1)
    if options.weight_decay and not options.decoupled:
        grad = grad.add(weight, alpha=options.weight_decay)
    if options.weight_decay and options.decoupled:
        weight = weight.sub(weight.mul((lr * options.weight_decay).to(weight.dtype)))
    return weight, grad
