"""What is lost of one real gradient in half precision, by loss scale."""

import pathlib
from typing import Any

import torch

from docs.figures.style import LOOKS, label, new_figure, save
from docs.figures.trainings import SEED, gradient, task
from gradops.demo.network import ResidualNet

EXPONENTS = tuple(range(-8, 41, 2))
KINDS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def draw(path: pathlib.Path) -> dict[str, Any]:
    """The share of the gradient's elements that become 0 or inf."""
    torch.manual_seed(SEED)
    network = ResidualNet()
    grad = torch.cat([g.flatten() for g in gradient(network, task(0.01).train.batch(torch.arange(64)))])
    grad = grad[grad != 0]
    figure, (axes,) = new_figure(6.8, 3.6)
    facts: dict[str, Any] = {}
    looks = iter(LOOKS)
    for name, dtype in KINDS.items():
        scaled = [(grad.double() * 2.0**exponent).to(dtype) for exponent in EXPONENTS]
        for what, lost in (("0", [_share(g == 0) for g in scaled]), ("inf", [_share(g.isinf()) for g in scaled])):
            look = {**next(looks), "marker": ""}
            axes.plot(EXPONENTS, lost, label=f"{name}: becomes {what}", **look)
            facts[f"{name} {what}"] = {f"2^{e}": round(v, 4) for e, v in zip(EXPONENTS, lost, strict=True)}
    axes.set_xticks(EXPONENTS[::4], [f"$2^{{{exponent}}}$" for exponent in EXPONENTS[::4]])
    label(axes, "share of one gradient's elements that half precision loses", "loss scale")
    axes.legend(frameon=False, loc="center")
    save(figure, path)
    return facts


def _share(lost: torch.Tensor) -> float:
    return float(lost.double().mean())
