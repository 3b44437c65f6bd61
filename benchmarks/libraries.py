"""Other people's fused AdamW, each with torch's norm clip before it; measured on a GPU where it can be imported."""

import importlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .baselines import GRADOPS, MAX_NORM, Build, Recipe, Step

# torch.optim.AdamW's defaults, which not every library shares.
_ADAMW = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
# The norm reads the gradient, the clip reads and writes it; the update reads four arrays and writes three.
_BYTES_PER_PARAM = 4 + 8 + 28


@dataclass(frozen=True)
class Library:
    """A class that is AdamW by its name or by a keyword.

    Attributes:
        name: what tables call it.
        module: where the class is.
        optimizer: the class.
        options: keywords beyond torch's that make it AdamW.
        capturable: whether it takes torch's `capturable`; without it its step counter stands still in a CUDA graph.
    """

    name: str
    module: str
    optimizer: str
    options: tuple[tuple[str, bool], ...] = (("adam_w_mode", True),)
    capturable: bool = True

    def recipe(self) -> Recipe:
        """Raises ImportError where the library cannot be used, with the reason."""
        try:
            cls = getattr(importlib.import_module(self.module), self.optimizer)
        except Exception as error:  # a library built for another torch fails in its own ways
            raise ImportError(f"{type(error).__name__}: {error}") from error
        return Recipe(f"{self.name} + clip", self._build(cls), _BYTES_PER_PARAM, GRADOPS)

    def _build(self, cls: type) -> Build:
        def build(params: list[Tensor], capturable: bool = False) -> Step:
            if capturable and not self.capturable:
                raise RuntimeError(f"{self.optimizer} of {self.name} cannot be captured")
            optimizer = cls(params, **_ADAMW, **dict(self.options), **({"capturable": True} if capturable else {}))

            def step() -> None:
                torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
                optimizer.step()

            return step

        return build


LIBRARIES = (
    Library("apex FusedAdam", "apex.optimizers", "FusedAdam"),
    Library("TransformerEngine FusedAdam", "transformer_engine.pytorch.optimizers", "FusedAdam"),
    Library("DeepSpeed FusedAdam", "deepspeed.ops.adam", "FusedAdam", capturable=False),
    Library("optimi AdamW", "optimi", "AdamW", options=(), capturable=False),
)


def find_libraries() -> tuple[list[Recipe], dict[str, str]]:
    """The recipes of the libraries that can be imported, and why the others cannot, by name."""
    recipes, absent = [], {}
    for library in LIBRARIES:
        try:
            recipes.append(library.recipe())
        except ImportError as error:
            absent[library.name] = str(error)
    return recipes, absent
