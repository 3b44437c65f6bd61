"""Adamax."""

import tolerances as tol
import torch
from hypothesis import strategies as st

import gradops

CLASSES = (gradops.Adamax,)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "betas": {"betas": (0.5, 0.9)},
    "no momentum": {"betas": (0.0, 0.99)},
    "eps": {"eps": 1e-3},
    "weight decay": {"weight_decay": 0.1},
    "maximize": {"maximize": True},
    "everything": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, "maximize": True},
}
HYPER = {
    "betas": st.sampled_from([(0.9, 0.999), (0.8, 0.95), (0.0, 0.99)]),
    "eps": st.sampled_from([1e-8, 1e-3]),
}


def scale(step):
    """What float32 loses of a gradient where penalties cancel it, over what Adamax divides it by: much, near 0."""
    if not step.penalised:
        return 1.0
    return 1.0 + (tol.FLOAT32_EPS * step.largest / tol.PARAM.atol) / step.state["exp_inf"].double().cpu()


def moment(step, name):
    # A first moment that shrinks keeps the rounding of what it was, or of its share up to beta1 of 0.5.
    beta1 = float(step.group["betas"][0])
    kept = beta1 if name == "exp_avg" and beta1 <= 0.5 else 1.0
    return tol.POWER_EXP_AVG if step.powers else tol.EXP_AVG, max(step.largest, kept * step.before[name])
