"""The other forms in which a GPU can run our step, beside the one that it takes by itself."""

from typing import Any

from torch import Tensor

from gradops.backends import choose
from gradops.backends.native import extension
from gradops.bench.recipes import GRADOPS, Recipe, Step, gradops_clipped, one_pass_bytes

TWO_LAUNCHES, TRITON = "gradops, two launches", "gradops, Triton"


def _two_launches(params: list[Tensor], **_: bool) -> Step:
    code: Any = extension._C
    before = code.allow_one_launch(False)
    try:
        step = gradops_clipped(backend="native")(params)
        step()  # makes the table, and with it the choice of the form
    finally:
        code.allow_one_launch(before)
    return step


def find_forms(device: str) -> tuple[list[Recipe], dict[str, str]]:
    """The recipes of the other forms that run on `device`, and why the others cannot, by name."""
    if device == "cpu":
        return [], {}
    recipes, absent = [], {}
    for name, backend, build in (
        (TWO_LAUNCHES, "native", _two_launches),
        (TRITON, "triton", gradops_clipped(backend="triton")),
    ):
        if reason := choose.missing(backend, device):
            absent[name] = reason
        else:
            recipes.append(Recipe(name, build, one_pass_bytes, GRADOPS))
    return recipes, absent
