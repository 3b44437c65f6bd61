"""`Adamax`: torch's class with the one pass as its step."""

from typing import Any

import torch
from typing_extensions import Unpack

from gradops.one_pass.one_pass import OnePass
from gradops.optim.text import ARGUMENTS
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="adamax",
    title="Adamax",
    moments=(Moment("exp_avg"), Moment("exp_inf")),
    group_keys=("betas", "eps"),
    hyper=("betas.0", "betas.1", "eps"),
    scale_free=True,
)


class AdamaxKeywords(SettingsDict, total=False):
    """torch.optim.Adamax's keywords and the settings."""

    lr: float | torch.Tensor
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    foreach: bool | None
    maximize: bool
    differentiable: bool
    capturable: bool


class Adamax(OnePass, torch.optim.Adamax):
    __doc__ = f"""torch.optim.Adamax whose step also unscales, checks, measures, clips and moves the loss scale.

    It takes all of torch's arguments, and after them the settings, which `gradops.wrap` has too. Moments are of
    `moments_dtype` whatever the parameter's dtype.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[AdamaxKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.Adamax.__init__)
