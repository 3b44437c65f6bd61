"""`RAdam`: torch's class with the one pass as its step."""

from typing import Any

import torch
from typing_extensions import Unpack

from gradops.one_pass.one_pass import OnePass
from gradops.optim.text import ARGUMENTS
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="radam",
    title="RAdam",
    moments=(Moment("exp_avg"), Moment("exp_avg_sq")),
    group_keys=("betas", "eps"),
    hyper=("betas.0", "betas.1", "eps"),
    scale_free=False,
    decoupled_key="decoupled_weight_decay",
)


class RAdamKeywords(SettingsDict, total=False):
    """torch.optim.RAdam's keywords and the settings."""

    lr: float | torch.Tensor
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled_weight_decay: bool
    foreach: bool | None
    maximize: bool
    capturable: bool
    differentiable: bool


class RAdam(OnePass, torch.optim.RAdam):
    __doc__ = f"""torch.optim.RAdam whose step also unscales, checks, measures, clips and moves the loss scale.

    It takes all of torch's arguments, and after them the settings, which `gradops.wrap` has too. The first updates,
    five with the usual `betas`, are as large as the gradients: `max_relative_step` bounds them as SGD's, and later ones
    as Adam's.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[RAdamKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.RAdam.__init__)
