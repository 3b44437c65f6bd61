"""`RMSprop`: torch's class with the one pass as its step."""

from typing import Any

import torch
from typing_extensions import Unpack

from gradops.one_pass.one_pass import OnePass
from gradops.optim.text import ARGUMENTS
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="rmsprop",
    title="RMSprop",
    moments=(
        Moment("square_avg"),
        Moment("momentum_buffer", used=lambda group: group["momentum"] > 0, because="momentum is not 0", late=True),
        Moment("grad_avg", used=lambda group: bool(group["centered"]), because="centered is on", late=True),
    ),
    group_keys=("alpha", "eps"),
    hyper=("alpha", "eps", "momentum", "centered"),
    scale_free=True,
)


class RMSpropKeywords(SettingsDict, total=False):
    """torch.optim.RMSprop's keywords and the settings."""

    lr: float | torch.Tensor
    alpha: float
    eps: float
    weight_decay: float
    momentum: float
    centered: bool
    capturable: bool
    foreach: bool | None
    maximize: bool
    differentiable: bool


class RMSprop(OnePass, torch.optim.RMSprop):
    __doc__ = f"""torch.optim.RMSprop whose step also unscales, checks, measures, clips and moves the loss scale.

    It takes all of torch's arguments, and after them the settings, which `gradops.wrap` has too. Moments are of
    `moments_dtype` whatever the parameter's dtype. With `centered`, rounding can make the variance of a gradient that
    stays the same negative: it counts as 0 then, where torch's parameter becomes NaN. Where `momentum` or `centered` is
    switched on in mid-run, its moment begins at 0, where torch raises a KeyError.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[RMSpropKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.RMSprop.__init__)
