"""`SGD`: torch's class with the one pass as its step."""

from typing import Any

import torch
from typing_extensions import Unpack

from gradops.one_pass.one_pass import OnePass
from gradops.optim.text import ARGUMENTS
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="sgd",
    title="SGD",
    moments=(
        Moment("momentum_buffer", used=lambda group: group["momentum"] != 0, because="momentum is not 0", late=True),
    ),
    group_keys=("momentum", "dampening"),
    hyper=("momentum", "dampening", "nesterov"),
    scale_free=False,
    counters=(),
)


class SGDKeywords(SettingsDict, total=False):
    """torch.optim.SGD's keywords and the settings."""

    lr: float | torch.Tensor
    momentum: float
    dampening: float
    weight_decay: float | torch.Tensor
    nesterov: bool
    maximize: bool
    foreach: bool | None
    differentiable: bool
    fused: bool | None


class SGD(OnePass, torch.optim.SGD):
    __doc__ = f"""torch.optim.SGD whose step also unscales, checks, measures, clips and moves the loss scale.

    It takes all of torch's arguments, and after them the settings, which `gradops.wrap` has too. A parameter's state
    has torch's `momentum_buffer` where `momentum` is not 0, of `moments_dtype`, and a `step`, which torch's has not: a
    checkpoint of torch's counts as one update where there is a buffer. Where `momentum` is switched on in mid-run,
    buffer and `step` begin anew. `max_relative_step` compares with the gradient, too; see `RelativeStepCap`.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[SGDKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.SGD.__init__)
