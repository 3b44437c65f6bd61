"""Update rules in torch's own operations, a file a rule.

Each has these functions. `hyper` is what `UpdateRule.hyper_of` gives of the param group.

* `coefs(params, hyper, lr, step)`: what each of a group's parameters takes besides `hyper`, derived in the wide dtype
  and then rounded; the rate `lr` and the number of the update `step`, from 1, are one value a parameter, in the
  wide dtype. A rule whose state has a scalar gets its values before the update, too, one float32 a parameter.
* `next_scalar(hyper, step, scalar)`, only of such a rule: the values after the update.
* `adapts(hyper, step)`, only of a rule of which some updates have the gradients' size and others do not: whether update
  `step` has not, one value a parameter.
* `grad_factor(hyper, weight_decay, lr, weight_norms, grad_norms)`, only of a rule that scales gradients by norms
  (`UpdateRule.needs_norms`): what each of a group's regularised gradients is multiplied by; norms and rates are one
  value a parameter, as the result, in the wide dtype.
* `update(weight, grad, moments, hyper, coefs)`: the new weights, and the new moments in the order of the old ones,
  which are those that the group's updates have. `weight` and `grad` are regularised. Nothing is written.
"""

import importlib
from typing import Any


def load(name: str) -> Any:
    """The module of the rule of this name."""
    return importlib.import_module(f"{__name__}.{name}")
