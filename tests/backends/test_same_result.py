"""A backend's step and the CPU's, and the operators', from the same bits: within the table of tolerances."""

import copy
import os
from dataclasses import replace

import pytest
import tolerances as tol
import torch
from beside import HALF_ULP, assert_close, params_of
from cases import CHUNK, ParamCase, needs_native

import gradops
from gradops.backends.native import extension

CASES = [
    ParamCase((64, 33)),
    ParamCase((CHUNK + 1,)),
    ParamCase((3, 3, 16, 16), layout="channels_last", grad_layout="channels_last"),
    ParamCase((40_001,)),
    ParamCase((17,), torch.bfloat16, grad_dtype=torch.bfloat16),
    ParamCase((40, 30), torch.float16, layout="transposed", grad_dtype=torch.float16),
    ParamCase((0,)),
]
SETTINGS = {
    "plain": {},
    "clipped": {"max_norm": 1.0, "clip_value": 0.5},
    "capped": {"max_norm": 1.0, "max_relative_step": 0.05},
    "agc": {"clip_mode": "agc", "max_norm": 0.01},
}
STEPS = 5
LR = 0.1
CPU = "torch" if extension.MISSING or "GRADOPS_EMULATED_FORM" in os.environ else "native"


def make(device, **settings):
    torch.manual_seed(2)
    return gradops.AdamW([case.param().to(device).detach().requires_grad_() for case in CASES], lr=LR, **settings)


def take_over(optimizer, source):
    """Parameters and state of another device's optimizer."""
    with torch.no_grad():
        for mine, theirs in zip(params_of(optimizer), params_of(source), strict=True):
            mine.copy_(theirs)
    optimizer.load_state_dict(copy.deepcopy(source.state_dict()))  # what was loaded is used in place


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_step_is_the_cpus_within_the_table(device, settings):
    ours, cpus = make(device, **settings), make("cpu", backend=CPU, **settings)
    for _ in range(STEPS):
        grads = [case.grad() for case in CASES]
        for optimizer in (ours, cpus):
            for param, grad in zip(params_of(optimizer), grads, strict=True):
                param.grad = grad.to(param.device)
        take_over(ours, cpus)
        ours.step()
        cpus.step()
        compare(ours, cpus, max(grad.abs().max().item() for grad in grads if grad.numel()))
    assert int(ours.stats.steps_taken) >= STEPS


def compare(ours, cpus, largest):
    assert_close(ours.stats.grad_norm, cpus.stats.grad_norm, tol.NORM, what="grad_norm")
    assert_close(ours.stats.clip_coef, cpus.stats.clip_coef, tol.CLIP_COEF, what="clip_coef")
    for row, (mine, theirs) in enumerate(zip(params_of(ours), params_of(cpus), strict=True)):
        ulp, _ = HALF_ULP.get(theirs.dtype, (tol.PARAM.rtol, 0.0))
        assert_close(mine, theirs, replace(tol.PARAM, rtol=ulp), LR, f"parameter {row}")
        for key, tolerance, magnitude in (
            ("exp_avg", tol.EXP_AVG, largest),
            ("exp_avg_sq", tol.EXP_AVG_SQ, largest**2),
        ):
            moment = ours.state[mine][key].cpu()
            assert_close(moment, cpus.state[theirs][key], tolerance, magnitude, f"{key} of parameter {row}")


def operators(device):
    """What each operator gives for tensors of that device, with the tolerance of its numbers and what `atol` scales."""
    torch.manual_seed(3)
    ops, scale = torch.ops.gradops, torch.tensor(8.0, device=device)
    grads = [case.grad().to(device) for case in CASES]
    largest = max(grad.abs().max().item() for grad in grads if grad.numel())
    norms = ops.grad_stats(grads, scale, 0.5, 2.0)
    yield from (("norm", value, tol.NORM, 0.0) for value in norms)
    yield "clipped norm", ops.clip_grad_norm_(grads, 1.0), tol.NORM, 0.0
    yield "found_inf", ops.unscale_(grads, scale), tol.NORM, 0.0
    weights = [torch.randn(case.shape).to(device) for case in CASES]
    averages, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    steps, floats = [torch.zeros((), device=device) for _ in weights], [grad.float() for grad in grads]
    ops.adam_step_(weights, floats, averages, squares, [], steps, torch.tensor(LR, device=device))
    yield from (("weight", weight, tol.PARAM, LR) for weight in weights)
    yield from (("exp_avg", average, tol.EXP_AVG, largest) for average in averages)
    yield from (("exp_avg_sq", square, tol.EXP_AVG_SQ, largest**2) for square in squares)
    values = torch.randn(40_001).to(device)
    measures, counts = ops.activation_stats(values, 1e-3)
    yield "activations", measures, tol.ACTIVATION_STD, 1.0
    yield "counts", counts, tol.Tolerance(0.0, 0.0, "integers"), 0.0


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_native
@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=NO_GPU)], ids="native-{}".format)
def test_operators_give_the_cpus_result_within_the_table(place):
    for (what, mine, tolerance, magnitude), (_, cpus, _, _) in zip(
        list(operators(place)), list(operators("cpu")), strict=True
    ):
        assert mine.device.type == place
        assert_close(mine, cpus, tolerance, magnitude, what)
