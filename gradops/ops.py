"""`torch.ops.gradops`: the phases of a step as functional operators for torch.compile and for people who build their
own optimizer. The tensors of a call are on one device, in float32, bfloat16 or float16 (float64 is refused), strided in
any way; where no native code was built for it, torch's own operations do the same.

* `grad_stats(grads, grad_scale=None, clip_value=None, norm_type=2.0) -> (grad_norm, norms, abs_max, nonfinite)`:
  what `gradops.StepStats` has under these names. `grad_scale` is one float32 value, which the gradients are divided by.
* `adam_step_(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps, lr, *, grad_scale, clip_coef, found_inf,
  clip_value, beta1, beta2, eps, weight_decay, decoupled, maximize, l1)`: one update of every parameter, nothing if
  `found_inf` is not 0. `max_exp_avg_sqs` is empty without amsgrad; `steps` are single float32 values. It is a door to
  `_update_`, which is for gradops alone: the same for every update rule, with its moments in one list, and in another
  the number that a state may have beside its step.
* `clip_grad_norm_(grads, max_norm, norm_type=2.0) -> norm`
* `unscale_(grads, grad_scale) -> found_inf`
* `update_loss_scale_(scale, growth_tracker, found_inf, *, growth_factor, backoff_factor, growth_interval, min_scale,
  max_scale)`: `scale` is one float32 and `growth_tracker` one int64 value.
* `activation_stats(x, near_zero) -> (measures, counts)`: of the finite values of `x` the mean, the standard deviation
  (of a population) and the largest magnitude, [3] float32, NaN where there are none; and [60] int64: elements, those of
  a magnitude up to `near_zero`, finite ones below 0, non-finite ones, and a histogram of the finite ones between
  `gradops.record.activations.histogram_edges()`, its outermost bins open.
"""

import functools
import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradops.backends import activations
from gradops.backends.checks import check_tensor
from gradops.backends.native import extension  # noqa: F401  # loads what brings operators of its own
from gradops.backends.torch import ops as torch_ops
from gradops.backends.torch.activations import BINS, COUNTS
from gradops.torch_before_2_7 import annotate_before_2_7

_WRITTEN = {
    "grad_stats": (),
    "_update_": ("params", "moments", "steps", "scalars"),
    "adam_step_": ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "steps"),
    "clip_grad_norm_": ("grads",),
    "unscale_": ("grads",),
    "update_loss_scale_": ("scale", "growth_tracker"),
    "activation_stats": (),
}


def _for_kernels_dtypes(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator without float64, which no native code takes: what it takes does not depend on the build."""
    signature = inspect.signature(operator)

    @functools.wraps(operator)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for role, tensors in signature.bind(*args, **kwargs).arguments.items():
            for index, tensor in enumerate(tensors if isinstance(tensors, list) else ()):
                if isinstance(tensor, Tensor) and tensor.dtype == torch.float64 and role not in ("steps", "scalars"):
                    check_tensor(tensor, tensor.device, role, str(index))
        return operator(*args, **kwargs)

    return checked


def adam_step_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    lr: Tensor,
    *,
    grad_scale: Tensor | None = None,
    clip_coef: Tensor | None = None,
    found_inf: Tensor | None = None,
    clip_value: float | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    l1: float = 0.0,
) -> None:
    moments = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    if max_exp_avg_sqs:
        moments["max_exp_avg_sqs"] = max_exp_avg_sqs
    for name, tensors in moments.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name} must have one tensor a parameter, {len(params)}, got {len(tensors)}")
    torch.ops.gradops._update_(
        "adam", params, grads, list(chain(*moments.values())), steps, [], lr,
        hyper=[beta1, beta2, eps, float(bool(max_exp_avg_sqs))], grad_scale=grad_scale, clip_coef=clip_coef,
        found_inf=found_inf, clip_value=clip_value, weight_decay=weight_decay, decoupled=decoupled, maximize=maximize,
        l1=l1,
    )  # fmt: skip


# Those that are no function of `torch_ops`.
_ELSEWHERE: dict[str, Callable[..., Any]] = {"activation_stats": activations.activation_stats, "adam_step_": adam_step_}
# Kept, since the operators vanish with it.
_library = torch.library.Library("gradops", "FRAGMENT")
for _name, _written in _WRITTEN.items():
    _kernel = _for_kernels_dtypes(_ELSEWHERE.get(_name) or getattr(torch_ops, _name))
    if not hasattr(torch.ops.gradops, _name):  # by the native code
        _schema = torch.library.infer_schema(annotate_before_2_7(_kernel), mutates_args=_written)
        _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    # For every device that has no kernel of its own.
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")


def _scalar(beside: list[Tensor]) -> Tensor:
    return torch.empty((), dtype=torch.float32, device=beside[0].device if beside else "cpu")


@torch.library.register_fake("gradops::grad_stats")
def _(
    grads: list[Tensor], grad_scale: Tensor | None = None, clip_value: float | None = None, norm_type: float = 2.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_norm = _scalar(grads)
    norms = torch.empty(len(grads), dtype=torch.float32, device=grad_norm.device)
    return grad_norm, norms, torch.empty_like(norms), torch.empty_like(norms, dtype=torch.int64)


@torch.library.register_fake("gradops::clip_grad_norm_")
def _(grads: list[Tensor], max_norm: float, norm_type: float = 2.0) -> Tensor:
    return _scalar(grads)


@torch.library.register_fake("gradops::unscale_")
def _(grads: list[Tensor], grad_scale: Tensor) -> Tensor:
    return _scalar(grads)


@torch.library.register_fake("gradops::_update_")
@torch.library.register_fake("gradops::adam_step_")
def _(*args: object, **kwargs: object) -> None:
    return None


@torch.library.register_fake("gradops::update_loss_scale_")
def _(*args: object, **kwargs: object) -> None:
    return None


@torch.library.register_fake("gradops::activation_stats")
def _(x: Tensor, near_zero: float) -> tuple[Tensor, Tensor]:
    measures = torch.empty(3, dtype=torch.float32, device=x.device)
    return measures, torch.empty(COUNTS + BINS, dtype=torch.int64, device=x.device)
