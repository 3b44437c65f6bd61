"""`NAdam`: torch's class with the one pass as its step."""

from typing import Any

import torch
from typing_extensions import Unpack

from gradops.one_pass.one_pass import OnePass
from gradops.optim.text import ARGUMENTS
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, Scalar, UpdateRule

RULE = UpdateRule(
    name="nadam",
    title="NAdam",
    moments=(Moment("exp_avg"), Moment("exp_avg_sq")),
    group_keys=("betas", "eps", "momentum_decay"),
    hyper=("betas.0", "betas.1", "eps", "momentum_decay"),
    scale_free=True,
    decoupled_key="decoupled_weight_decay",
    scalars=(Scalar("mu_product", 1.0),),
)


class NAdamKeywords(SettingsDict, total=False):
    """torch.optim.NAdam's keywords and the settings."""

    lr: float | torch.Tensor
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    momentum_decay: float
    decoupled_weight_decay: bool
    foreach: bool | None
    maximize: bool
    capturable: bool
    differentiable: bool


class NAdam(OnePass, torch.optim.NAdam):
    __doc__ = f"""torch.optim.NAdam whose step also unscales, checks, measures, clips and moves the loss scale.

    It takes all of torch's arguments, and after them the settings, which `gradops.wrap` has too. A parameter's state
    has torch's `mu_product`, one float32 on the parameter's device, as `step` is.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[NAdamKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.NAdam.__init__)
