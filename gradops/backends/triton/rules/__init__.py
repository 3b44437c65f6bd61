"""Update rules in Triton, a file a rule.

Each has

* `MOMENTS`: by variant, the slots of the moments that its updates have; a slot is a place in `UpdateRule.moments`;
* `COEFS`: how many coefficients an update takes;
* `variant_of(hyper)`: which variant a param group's `UpdateRule.hyper_of` asks for;
* `coefficients(hyper, lr, step)`, jit: makes them in float64, to be rounded, from a pointer to `hyper_of`'s numbers,
  the rate that the parameter takes, and the number of its update, from 1. A rule whose state has a scalar gets
  its value before the update, too, in float64;
* `next_scalar(hyper, step, scalar)`, jit, only of such a rule: the value after the update, in float32;
* `adapts(hyper, step)`, jit, only of a rule of which some updates have the gradients' size and others do not: whether
  update `step` has not;
* `grad_factor(hyper, weight_decay, lr, weight_norm, grad_norm)`, jit, only of a rule that scales gradients by norms
  (`UpdateRule.needs_norms`): what the regularised gradient is multiplied by, in float64; `coefficients` takes it as its
  last argument, and `element` multiplies by it;
* `element(param, grad, moments, coefs, VARIANT)`, jit: the new parameter and moments in float32. `grad` is unscaled,
  clipped and regularised, and `moments` are those of the variant.

Nothing here needs Triton until a rule is loaded.
"""

import importlib
import importlib.util
from typing import Any

from gradops.update_rule import UpdateRule


def missing(rule: UpdateRule) -> str:
    """Why no Triton kernel updates by this rule; empty if one does."""
    if importlib.util.find_spec(_module_of(rule)) is None:
        return f"no Triton kernel updates by {rule.title}"
    return ""


def load(rule: UpdateRule) -> Any:
    """The rule's module."""
    return importlib.import_module(_module_of(rule))


def _module_of(rule: UpdateRule) -> str:
    return f"{__name__}.{rule.name}"
