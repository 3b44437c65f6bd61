"""RMSprop, centered or not, with and without momentum."""

import tolerances as tol
import torch
from hypothesis import strategies as st

import gradops

CLASSES = (gradops.RMSprop,)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "alpha": {"alpha": 0.7},
    "eps": {"eps": 1e-3},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "centered": {"centered": True},
    "maximize": {"maximize": True},
    "everything": {"lr": 0.02, "alpha": 0.9, "momentum": 0.7, "centered": True, "weight_decay": 0.3, "maximize": True},
}
HYPER = {
    "alpha": st.sampled_from([0.99, 0.9]),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "momentum": st.sampled_from([0.0, 0.9]),
    "centered": st.booleans(),
}

# Of the buffer, whose rounding is in the step.
_OF_BUFFER = 0.05


def scale(step):
    """An update is 1 / sqrt(1 - alpha) at most, and right to a few roundings of it. Where the square of the average is
    most of the average square, what is left of it has their error, and where penalties cancel the gradient, float32
    loses of it: much, near 0.
    """
    group, square = step.group, step.state["square_avg"].double()
    largest = (1.0 - group["alpha"]) ** -0.5
    variance = square - step.state["grad_avg"].double().square() if group["centered"] else square
    denom = variance.clamp(min=0.0).sqrt() + group["eps"]
    result = largest * (square / denom.square()).clamp(min=1.0).pow(1.5) if group["centered"] else largest
    if step.penalised:
        result = result + (tol.FLOAT32_EPS * step.largest / tol.PARAM.atol) / denom
    return torch.as_tensor(result + _OF_BUFFER * step.before.get("momentum_buffer", 0.0)).cpu()


def moment(step, name):
    if name == "momentum_buffer":
        return tol.Tolerance(tol.POWER_EXP_AVG.rtol, tol.PARAM.atol, "as the parameter's step"), scale(step)
    if name == "grad_avg":
        return tol.POWER_EXP_AVG if step.powers else tol.EXP_AVG, max(step.largest, step.before[name])
    squares = tol.POWER_EXP_AVG_SQ if step.powers else tol.EXP_AVG_SQ
    return tol.L2_EXP_AVG_SQ if step.penalised else squares, step.largest**2
