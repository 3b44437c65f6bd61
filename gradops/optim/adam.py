"""`Adam` and `AdamW`: torch's classes with the one pass as their step."""

from typing import Any

import torch
from typing_extensions import Unpack

from gradops.one_pass.one_pass import OnePass
from gradops.optim.text import ARGUMENTS
from gradops.settings import SettingsDict, spelt_out
from gradops.torch_before_2_7 import refuse_before_2_7
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="adam",
    title="Adam",
    moments=(
        Moment("exp_avg"),
        Moment("exp_avg_sq"),
        Moment("max_exp_avg_sq", used=lambda group: bool(group["amsgrad"]), because="amsgrad is on"),
    ),
    group_keys=("betas", "eps"),
    hyper=("betas.0", "betas.1", "eps", "amsgrad"),
    scale_free=True,
    decoupled_key="decoupled_weight_decay",
)


class AdamWKeywords(SettingsDict, total=False):
    """torch.optim.AdamW's keywords and the settings."""

    lr: float | torch.Tensor
    betas: tuple[float | torch.Tensor, float | torch.Tensor]
    eps: float
    weight_decay: float
    amsgrad: bool
    foreach: bool | None
    maximize: bool
    capturable: bool
    differentiable: bool
    fused: bool | None


class AdamKeywords(AdamWKeywords, total=False):
    """torch.optim.Adam's keywords and the settings."""

    decoupled_weight_decay: bool


class Adam(OnePass, torch.optim.Adam):
    __doc__ = f"""torch.optim.Adam whose step also unscales, checks, measures, clips and moves the loss scale.

    It takes all of torch's arguments, and after them the settings, which `gradops.wrap` has too. Moments are of
    `moments_dtype` whatever the parameter's dtype. A step's meaning is written down in `gradops.reference`.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[AdamKeywords]) -> None:
        refuse_before_2_7(keywords)
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.Adam.__init__)


class AdamW(OnePass, torch.optim.AdamW):
    __doc__ = f"""torch.optim.AdamW, as `gradops.Adam` is torch.optim.Adam: torch's arguments first, then the settings.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[AdamWKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.AdamW.__init__)
