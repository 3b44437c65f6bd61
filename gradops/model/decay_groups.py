"""Param groups of which one is regularised and the other, norms and biases, is not."""

from typing import Any

from torch import nn

from gradops.model.init import NORMS


def no_decay_groups(model: nn.Module, *, weight_decay: float, l1: float = 0.0) -> list[dict[str, Any]]:
    """Two groups for an optimizer: parameters with weight decay and an L1 penalty, and those that these would harm.

    The second group, with both at 0, has every parameter of at most one dimension, every one named `bias`, and those
    of batch, instance, group, layer and RMS norms. Both have the parameters' names, in the order of the model:

        optimizer = gradops.AdamW(gradops.no_decay_groups(model, weight_decay=0.05), lr=1e-3)

    Args:
        model: its parameters are taken once each, frozen ones too.
        weight_decay: of the first group; decoupled or L2 as the optimizer has it.
        l1: of the first group; see `gradops.wrap`.

    Returns:
        The groups that have parameters.
    """
    of_norms = {
        param for module in model.modules() if isinstance(module, NORMS) for param in module.parameters(recurse=False)
    }
    decayed: list[tuple[str, nn.Parameter]] = []
    spared: list[tuple[str, nn.Parameter]] = []
    for name, param in model.named_parameters():
        spares = param.ndim <= 1 or name.rpartition(".")[2] == "bias" or param in of_norms
        (spared if spares else decayed).append((name, param))
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay, "l1": l1},
        {"params": spared, "weight_decay": 0.0, "l1": 0.0},
    ]
    return [group for group in groups if group["params"]]
