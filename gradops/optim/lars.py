"""`LARS` (You et al. 2017), which torch does not have."""

from typing import Any, ClassVar

import torch
from typing_extensions import Unpack

from gradops.numbers import flag, not_negative
from gradops.optim.own import Checks, OwnOptimizer, starts_of
from gradops.optim.text import arguments_with
from gradops.settings import SettingsDict, spelt_out
from gradops.update_rule import Moment, UpdateRule

RULE = UpdateRule(
    name="lars",
    title="LARS",
    moments=(
        Moment("momentum_buffer", used=lambda group: group["momentum"] != 0, because="momentum is not 0", late=True),
    ),
    group_keys=("momentum", "trust_coeff"),
    hyper=("momentum", "dampening", "nesterov", "trust_coeff", "eps", "trust_clip", "always_adapt"),
    scale_free=False,
    needs_norms=True,
    counters=(),
)

_ARGUMENTS = """\
        lr: learning rate; a number or a tensor of one.
        momentum: what the buffer keeps of itself.
        dampening: each gradient but the first enters the buffer times `1 - dampening`.
        weight_decay: added to the gradient (L2).
        nesterov: whether to look ahead by the momentum; needs a momentum, and no dampening.
        trust_coeff: the trust coefficient of the paper, its eta.
        eps: is added to the norms that are divided by.
        trust_clip: whether a tensor's rate is `min(lr, ratio)` in place of `lr * ratio`: LARC's clipping.
        always_adapt: whether groups without weight decay are adapted, too.
        maximize: whether to go up instead of down.
"""


class LARS(OwnOptimizer):
    __doc__ = f"""LARS (You et al. 2017, "Large batch training of convolutional networks") in one pass.

    With the gradient g, unscaled and clipped, and the L2 norms of it and of the parameter p before the update:

        ratio = trust_coeff * |p| / (|g| + weight_decay * |p| + eps)    1 where |p| or |g| is 0
        ratio = min(ratio / lr, 1)                                      with trust_clip
        d = ratio * (g + weight_decay * p)
        buffer = momentum * buffer + (1 - dampening) * d                begins as the first d
        p -= lr * buffer                                                lr * (d + momentum * buffer) with nesterov

    This is timm's Lars, with its defaults: the ratio is 1 for a group without weight decay, such as that of biases and
    norms, unless `always_adapt`. The paper has no `eps`, and puts the rate into the buffer, which is the same while the
    rate stays. With `l1` its penalty is added before the ratio, and counts in |g| in full.

    `max_relative_step` bounds the rate by the size of what it multiplies, the ratio included: it matters for groups
    that are not adapted. `norm_type` must be 2 and `clip_mode` "norm", since the pass takes |g| from the norms that it
    clips by. It knows |p| from the update before. A parameter's state has `momentum_buffer` where `momentum` is not 0,
    of `moments_dtype`, and a `step`. The `state_dict()` of timm's Lars loads here and that of this there.
    {arguments_with(_ARGUMENTS)}"""

    rule = RULE
    checks: ClassVar[Checks] = {
        **dict.fromkeys(("lr", "momentum", "dampening", "weight_decay", "trust_coeff", "eps"), not_negative),
        **dict.fromkeys(("nesterov", "trust_clip", "always_adapt", "maximize"), flag),
    }

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        trust_coeff: float = 0.001,
        eps: float = 1e-8,
        trust_clip: bool = False,
        always_adapt: bool = False,
        *,
        maximize: bool = False,
        **settings: Unpack[SettingsDict],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coeff": trust_coeff,
            "eps": eps,
            "trust_clip": trust_clip,
            "always_adapt": always_adapt,
            "maximize": maximize,
        }
        super().__init__(params, defaults, **settings)

    spelt_out(__init__)
    starts = starts_of(__init__)

    @classmethod
    def check_group(cls, group: dict[str, Any]) -> None:
        """As the base's, and whether Nesterov's form goes with momentum and dampening."""
        super().check_group(group)
        if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
            raise ValueError("nesterov needs a momentum that is not 0 and a dampening of 0")
