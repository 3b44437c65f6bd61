"""Lion."""

import tolerances as tol
import torch
from hypothesis import strategies as st

import gradops

CLASSES = (gradops.Lion,)
OPTIONS = {
    "default": {},
    "lr": {"lr": 0.01},
    "tensor lr": {"lr": torch.tensor(3e-3, dtype=torch.float64)},
    "betas": {"betas": (0.5, 0.8)},
    "no momentum": {"betas": (0.0, 0.0)},
    "weight decay": {"lr": 0.01, "weight_decay": 0.1},
    "maximize": {"maximize": True},
    "everything": {"lr": 0.02, "betas": (0.95, 0.98), "weight_decay": 0.3, "maximize": True},
}
HYPER = {"betas": st.sampled_from([(0.9, 0.99), (0.95, 0.98), (0.0, 0.5)])}

# A blend is right to the error of the clipped gradient and a few roundings of its terms; below that its sign is open.
_OF_A_BLEND = 2 * tol.CLIP_COEF.rtol
_OF_A_POWER_BLEND = 2 * tol.POWER_CLIP_COEF.rtol


def open_signs(step):
    """Of which elements float32 may see the sign of the blend otherwise."""
    beta1 = step.group["betas"][0]
    kept, added = beta1 * step.moments["exp_avg"], (1.0 - beta1) * step.grad
    terms = kept.abs() + added.abs() + (1.0 - beta1) * step.penalised * step.largest
    return (kept + added).abs() < (_OF_A_POWER_BLEND if step.powers else _OF_A_BLEND) * terms


def scale(step):
    """An update is the rate exactly, and where a sign is open it may be the rate the other way."""
    if step.grad is None:
        return 1.0
    other_way = 2.0 / tol.PARAM.atol
    return torch.where(open_signs(step), other_way, 1.0).cpu()


def moment(step, name):
    return tol.POWER_EXP_AVG if step.powers else tol.EXP_AVG, max(step.largest, step.before[name])
