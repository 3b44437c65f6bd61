"""Adam, AMSGrad and AdamW."""

import tolerances as tol
import torch
from hypothesis import strategies as st

import gradops

CLASSES = (gradops.Adam, gradops.AdamW)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.1},
    "tensor lr": {"lr": torch.tensor(0.03, dtype=torch.float64)},
    "betas": {"betas": (0.5, 0.9)},
    "no momentum": {"betas": (0.0, 0.99)},
    "eps": {"eps": 1e-3},
    "weight decay": {"weight_decay": 0.1},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "everything": {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3, "amsgrad": True, "maximize": True},
}
HYPER = {
    "betas": st.sampled_from([(0.9, 0.999), (0.8, 0.95), (0.0, 0.99)]),
    "eps": st.sampled_from([1e-8, 1e-3]),
    "amsgrad": st.booleans(),
}


def scale(step):
    """What float32 loses of a gradient where penalties cancel it, over what Adam divides it by: much, near 0."""
    if not step.penalised:
        return 1.0
    second = step.state["max_exp_avg_sq" if step.group.get("amsgrad") else "exp_avg_sq"]
    correction = 1.0 - step.group["betas"][1] ** max(1, step.state.step)
    denom = (second.double() / correction).sqrt() + step.group["eps"]
    return 1.0 + (tol.FLOAT32_EPS * step.largest / tol.PARAM.atol) / denom.cpu()


def moment(step, name):
    if name != "exp_avg":
        squares = tol.POWER_EXP_AVG_SQ if step.powers else tol.EXP_AVG_SQ
        return tol.L2_EXP_AVG_SQ if step.penalised else squares, step.largest**2
    # A first moment that shrinks keeps the rounding of what it was, or of its share up to beta1 of 0.5.
    beta1 = float(step.group["betas"][0])
    before = step.before[name] * (beta1 if beta1 <= 0.5 else 1.0)
    return tol.POWER_EXP_AVG if step.powers else tol.EXP_AVG, max(step.largest, before)
