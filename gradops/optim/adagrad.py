"""`Adagrad`: torch's class with the one pass as its step."""

from typing import Any

import torch
from typing_extensions import Unpack

from gradops.backends.checks import takes_part
from gradops.one_pass.groups import params_of
from gradops.one_pass.one_pass import OnePass
from gradops.optim.text import ARGUMENTS
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="adagrad",
    title="Adagrad",
    moments=(Moment("sum", start=lambda defaults: float(defaults["initial_accumulator_value"])),),
    group_keys=("lr_decay", "eps"),
    hyper=("lr_decay", "eps"),
    scale_free=True,
)


class AdagradKeywords(SettingsDict, total=False):
    """torch.optim.Adagrad's keywords and the settings."""

    lr: float | torch.Tensor
    lr_decay: float
    weight_decay: float
    initial_accumulator_value: float
    eps: float
    foreach: bool | None
    maximize: bool
    differentiable: bool
    fused: bool | None


class Adagrad(OnePass, torch.optim.Adagrad):
    __doc__ = f"""torch.optim.Adagrad whose step also unscales, checks, measures, clips and moves the loss scale.

    It takes all of torch's arguments, and after them the settings, which `gradops.wrap` has too. As in torch, a
    parameter's state is there before the first step, and begins at the constructor's `initial_accumulator_value`
    whatever its group says; a frozen parameter's is made when it takes part. Sums are of `moments_dtype` whatever the
    parameter's dtype; in bfloat16 a sum stops growing at a few hundred times the gradient's square.
    {ARGUMENTS}"""

    rule = RULE

    def __init__(self, params: Any, *args: Any, **keywords: Unpack[AdagradKeywords]) -> None:
        super().__init__(params, *args, **keywords)

    spelt_out(__init__, like=torch.optim.Adagrad.__init__)

    def share_memory(self) -> None:
        """Moves the sums into memory that processes share, in the dtype in which steps want them."""
        self.engine.prepare()
        for param in filter(takes_part, params_of(self.param_groups)):
            self.state[param]["sum"].share_memory_()
