"""NAdam, with either kind of weight decay."""

import torch
from hypothesis import strategies as st

import gradops
from rules.adam import moment, scale

__all__ = ["CLASSES", "HYPER", "OPTIONS", "moment", "scale"]

CLASSES = (gradops.NAdam,)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "betas": {"betas": (0.5, 0.9)},
    "no momentum": {"betas": (0.0, 0.99)},
    "eps": {"eps": 1e-3},
    "momentum decay": {"momentum_decay": 0.5},
    "constant momentum": {"momentum_decay": 0.0},
    "weight decay": {"weight_decay": 0.1},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True},
    "everything": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, "momentum_decay": 0.1, "maximize": True},
}
HYPER = {
    "betas": st.sampled_from([(0.9, 0.999), (0.8, 0.95), (0.0, 0.99)]),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "momentum_decay": st.sampled_from([0.004, 0.0, 0.5]),
    "decoupled_weight_decay": st.booleans(),
}
