"""LARS, with momentum and Nesterov's."""

import tolerances as tol
import torch
from hypothesis import strategies as st

import gradops

CLASSES = (gradops.LARS,)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "adapted": {"lr": 0.5, "weight_decay": 0.1},
    "always adapted": {"lr": 0.5, "always_adapt": True, "trust_coeff": 0.02},
    "clipped": {"lr": 0.02, "weight_decay": 0.1, "trust_coeff": 0.05, "trust_clip": True},
    "eps": {"lr": 0.5, "weight_decay": 0.1, "eps": 2.0},
    "momentum": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    "dampening": {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
    "nesterov": {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    "maximize": {"lr": 0.1, "weight_decay": 0.1, "maximize": True},
    "everything": {
        "lr": 0.3, "momentum": 0.7, "nesterov": True, "weight_decay": 0.3, "trust_coeff": 0.2, "trust_clip": True,
        "always_adapt": True, "maximize": True,
    },
}  # fmt: skip
HYPER = {
    "momentum": st.sampled_from([0.0, 0.9, 0.5]),
    "trust_coeff": st.sampled_from([0.001, 0.1]),
    "eps": st.sampled_from([1e-8, 0.5]),
    "trust_clip": st.booleans(),
    "always_adapt": st.booleans(),
}

# A step has the size of the gradient times its ratio, or of the buffer, and is right to a few roundings of it.
_OF_A_STEP = 0.05


def scale(step):
    return _OF_A_STEP * (2.0 * step.factor * step.largest + step.before.get("momentum_buffer", 0.0))


def moment(step, name):
    return tol.SCALED_BUFFER, max(step.factor * step.largest, step.before[name])
