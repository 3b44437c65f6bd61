"""SGD, with momentum and Nesterov's."""

import tolerances as tol
import torch
from hypothesis import strategies as st

import gradops

CLASSES = (gradops.SGD,)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "momentum": {"lr": 0.02, "momentum": 0.9},
    "dampening": {"lr": 0.02, "momentum": 0.9, "dampening": 0.4},
    "nesterov": {"lr": 0.02, "momentum": 0.8, "nesterov": True},
    "weight decay": {"lr": 0.02, "weight_decay": 0.1},
    "maximize": {"lr": 0.02, "maximize": True},
    "everything": {"lr": 0.02, "momentum": 0.7, "nesterov": True, "weight_decay": 0.3, "maximize": True},
    "everything dampened": {"lr": 0.02, "momentum": 0.7, "dampening": 0.1, "weight_decay": 0.3, "maximize": True},
}
HYPER = {
    "momentum": st.sampled_from([0.0, 0.9, 0.5]),
    "dampening": st.sampled_from([0.0, 0.4]),
    "nesterov": st.booleans(),
}

# A step has the size of the gradient, or of the buffer, and is right to a few roundings of it.
_OF_A_STEP = 0.05


def scale(step):
    return _OF_A_STEP * (2.0 * step.largest + step.before.get("momentum_buffer", 0.0))


def moment(step, name):
    return tol.POWER_EXP_AVG if step.powers else tol.EXP_AVG, max(step.largest, step.before[name])
