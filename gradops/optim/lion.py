"""`Lion` (Chen et al. 2023), which torch does not have."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from typing_extensions import Unpack

from gradops.numbers import flag, fraction, not_negative
from gradops.optim.own import Checks, OwnOptimizer, starts_of
from gradops.optim.text import arguments_with
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="lion",
    title="Lion",
    moments=(Moment("exp_avg"),),
    group_keys=("betas",),
    hyper=("betas.0", "betas.1"),
    scale_free=True,
    always_decouples=True,
    counters=(),
    off_keys=("caution", "corrected_weight_decay"),
)

_ARGUMENTS = """\
        lr: learning rate, by which every weight moves in every step; a number or a tensor of one.
        betas: share of the momentum in an update, and what is left of it after the update.
        weight_decay: decoupled, as AdamW's: `lr * weight_decay` of each weight is taken off it.
        maximize: whether to go up instead of down.
"""


def _betas(name: str, value: Any) -> None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise TypeError(f"{name} must be two numbers, got {value!r}")
    for index, beta in enumerate(value):
        fraction(f"{name}[{index}]", beta)


class Lion(OwnOptimizer):
    __doc__ = f"""Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2) in one pass.

    With the gradient g, unscaled and clipped, and the momentum m, which begins as 0:

        p -= lr * weight_decay * p
        p -= lr * sign(betas[0] * m + (1 - betas[0]) * g)
        m = betas[1] * m + (1 - betas[1]) * g

    and sign(0) = 0. Each weight moves by the learning rate, whatever the gradient's size; the paper takes a rate 3 to
    10 times smaller than AdamW's, and a decay as much larger. A parameter's state has `exp_avg`, of `moments_dtype`,
    and a `step`. The `state_dict()` of timm's Lion loads here and that of this there; one with `caution` or
    `corrected_weight_decay` is refused.
    {arguments_with(_ARGUMENTS)}"""

    rule = RULE
    checks: ClassVar[Checks] = {"lr": not_negative, "betas": _betas, "weight_decay": not_negative, "maximize": flag}

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **settings: Unpack[SettingsDict],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, **settings)

    spelt_out(__init__)
    starts = starts_of(__init__)
