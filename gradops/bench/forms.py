"""The other forms in which a GPU can run our step, beside the one that it takes by itself."""

from functools import partial
from typing import Any

from torch import Tensor

from gradops.backends import choose
from gradops.backends.native import extension
from gradops.bench.costs import one_pass_bytes
from gradops.bench.optimizers import Subject
from gradops.bench.recipes import GRADOPS, Build, Recipe, Step, gradops_clipped

TWO_LAUNCHES, TRITON = "gradops, two launches", "gradops, Triton"


def _two_launches(of: Subject) -> Build:
    def build(params: list[Tensor], **_: bool) -> Step:
        code: Any = extension._C
        before = code.allow_one_launch(False)
        try:
            step = gradops_clipped(of, backend="native")(params)
            step()  # makes the table, and with it the choice of the form
        finally:
            code.allow_one_launch(before)
        return step

    return build


def find_forms(device: str, of: Subject) -> tuple[list[Recipe], dict[str, str]]:
    """The recipes of the other forms that run on `device`, and why the others cannot, by name."""
    if device == "cpu":
        return [], {}
    recipes, absent = [], {}
    for name, backend, build in (
        (TWO_LAUNCHES, "native", _two_launches(of)),
        (TRITON, "triton", gradops_clipped(of, backend="triton")),
    ):
        if reason := choose.missing(backend, device):
            absent[name] = reason
        else:
            moved = partial(one_pass_bytes, moments=of.moments)
            recipes.append(Recipe(name, build, moved, GRADOPS, optimizer=of.name))
    return recipes, absent
