"""Adagrad, whose rate may decay and whose sum may begin above 0."""

import tolerances as tol
import torch
from hypothesis import strategies as st

import gradops

CLASSES = (gradops.Adagrad,)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "lr decay": {"lr": 0.1, "lr_decay": 0.5},
    "initial accumulator value": {"lr": 0.1, "initial_accumulator_value": 0.5},
    "eps": {"eps": 1e-3},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "everything": {
        "lr": 0.2,
        "lr_decay": 0.1,
        "initial_accumulator_value": 0.25,
        "weight_decay": 0.3,
        "maximize": True,
    },
}
HYPER = {"lr_decay": st.sampled_from([0.0, 0.5]), "eps": st.sampled_from([1e-10, 1e-3])}


def scale(step):
    """An update is 1 at most. Where penalties cancel the gradient, float32 loses of it: much, near 0."""
    if not step.penalised:
        return 1.0
    denom = step.state["sum"].double().sqrt() + step.group["eps"]
    return 1.0 + (tol.FLOAT32_EPS * step.largest / tol.PARAM.atol) / denom.cpu()


def moment(step, name):
    squares = tol.POWER_EXP_AVG_SQ if step.powers else tol.EXP_AVG_SQ
    return tol.L2_EXP_AVG_SQ if step.penalised else squares, step.largest**2
