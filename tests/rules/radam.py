"""RAdam, with either kind of weight decay."""

import torch
from hypothesis import strategies as st

import gradops
from gradops.reference.rules import radam
from rules import adam
from rules.adam import moment

__all__ = ["CLASSES", "HYPER", "OPTIONS", "moment", "scale"]

CLASSES = (gradops.RAdam,)
# Updates adapt from the 6th on; with a beta2 of 0.5 none does.
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "betas": {"betas": (0.5, 0.9)},
    "no momentum": {"betas": (0.0, 0.99)},
    "never adapting": {"betas": (0.9, 0.5)},
    "eps": {"eps": 1e-3},
    "weight decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
    "everything": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, "maximize": True},
}
HYPER = {
    "betas": st.sampled_from([(0.9, 0.999), (0.8, 0.95), (0.0, 0.99), (0.9, 0.5)]),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "decoupled_weight_decay": st.booleans(),
}

# The first steps have the size of the gradients, and are right to a few roundings of it, as SGD's.
_OF_A_STEP = 0.05


def scale(step):
    number = max(1, step.state.step)
    if radam.adapts(step.group, number):
        return adam.scale(step)
    correction = 1.0 - float(step.group["betas"][0]) ** number
    return _OF_A_STEP * (2.0 * step.largest + step.before["exp_avg"]) / correction
