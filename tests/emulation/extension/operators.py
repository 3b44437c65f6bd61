"""What torch.ops.gradops gives for the same tensors; as a program, into a file."""

import itertools
import math
import sys

import torch
from cases import ParamCase

import gradops  # noqa: F401  registers the operators

CASES = [
    ParamCase((512 * 17 + 5,)),
    ParamCase((3,)),
    ParamCase((0,)),
    ParamCase((512 * 2,), grad_dtype=torch.bfloat16),
    ParamCase((40,), grad_layout="misaligned"),
]


def gradients(value=None):
    torch.manual_seed(4)
    grads = [case.grad() for case in CASES]
    if value is not None:
        grads[3][-1] = value
    return grads


def results(call):
    """By name, every tensor that an operator returned or may have written; `call` has it called."""
    ops, found = torch.ops.gradops, {}
    for value in (None, math.inf, math.nan):
        grads = gradients(value)
        found[f"statistics of {value}"] = [*call(ops.grad_stats, grads, torch.tensor(8.0)), *grads]
        grads = gradients(value)
        found[f"clipped {value}"] = [call(ops.clip_grad_norm_, grads, 1.0), *grads]
        grads = gradients(value)
        found[f"unscaled {value}"] = [call(ops.unscale_, grads, torch.tensor(96.0)), *grads]
    for amsgrad, found_inf in itertools.product((False, True), (0.0, 1.0)):
        grads, params = gradients(), [case.param().detach() for case in CASES]
        moments = [[torch.rand(param.shape) for param in params] for _ in range(2 + amsgrad)]
        steps = [torch.tensor(4.0) for _ in params]
        scalars = {"grad_scale": 96.0, "clip_coef": 0.25, "found_inf": found_inf}
        scalars = {name: torch.tensor(number) for name, number in scalars.items()}
        lists = params, grads, *moments[:2], moments[2] if amsgrad else [], steps
        lr = torch.tensor(0.1, dtype=torch.float64)
        call(ops.adam_step_, *lists, lr, **scalars, weight_decay=0.1, decoupled=amsgrad)
        found[f"updated {amsgrad} {found_inf}"] = list(itertools.chain(*lists))
        scale, tracker = torch.tensor(512.0), torch.tensor(2 * amsgrad)
        call(ops.update_loss_scale_, scale, tracker, scalars["found_inf"], growth_interval=3)
        found[f"loss scale {amsgrad} {found_inf}"] = [scale, tracker]
    return found


if __name__ == "__main__":
    torch.save(results(lambda operator, *args, **options: operator(*args, **options)), sys.argv[1])
