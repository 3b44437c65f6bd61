"""Other people's AdamW, each with torch's norm clip before it; measured where it can be imported."""

import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradops.bench.costs import nothing_hidden
from gradops.bench.recipes import GRADOPS, Build, Recipe, Step, clipped_step

# torch.optim.AdamW's defaults, which not every library shares.
_ADAMW: dict[str, Any] = {"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}


def _update_bytes(element: int) -> int:
    """A fused update reads gradient, parameter and float32 moments and writes the last three."""
    return element + 2 * (element + 4 + 4)


@dataclass(frozen=True)
class Library:
    """A class that is AdamW by its name or by a keyword.

    Attributes:
        name: what tables call it.
        module: where the class is.
        optimizer: the class.
        devices: the types of device it steps on.
        options: keywords beyond torch's that make it AdamW.
        capturable: whether it takes torch's `capturable`; without it its step counter stands still in a CUDA graph.
        through_operators: whether its update shows itself to torch's dispatcher; None where what it moves is not known.
    """

    name: str
    module: str
    optimizer: str
    devices: tuple[str, ...] = ("cuda",)
    options: tuple[tuple[str, bool], ...] = (("adam_w_mode", True),)
    capturable: bool = True
    through_operators: bool | None = False

    def recipe(self) -> Recipe:
        """Raises ImportError where the library cannot be used, with the reason."""
        try:
            cls = getattr(importlib.import_module(self.module), self.optimizer)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != self.module.split(".")[0]:
                raise ImportError(f"it needs {error.name}") from error
            raise ImportError("not installed") from error
        except Exception as error:  # a library built for another torch fails in its own ways
            raise ImportError(f"{type(error).__name__}: {error}") from error
        hidden = {True: nothing_hidden, False: _update_bytes, None: None}[self.through_operators]
        return Recipe(f"{self.name} + clip", self._build(cls), hidden, GRADOPS)

    def _build(self, cls: type) -> Build:
        def build(params: list[Tensor], capturable: bool = False) -> Step:
            if capturable and not self.capturable:
                raise RuntimeError(f"{self.optimizer} of {self.name} cannot be captured")
            graph = {"capturable": True} if capturable else {}
            return clipped_step(cls(params, **_ADAMW, **dict(self.options), **graph), params)

        return build


LIBRARIES = (
    Library("apex FusedAdam", "apex.optimizers", "FusedAdam"),
    Library("TransformerEngine FusedAdam", "transformer_engine.pytorch.optimizers", "FusedAdam"),
    Library("DeepSpeed FusedAdam", "deepspeed.ops.adam", "FusedAdam", capturable=False),
    Library(
        "DeepSpeed CPUAdam",
        "deepspeed.ops.adam",
        "DeepSpeedCPUAdam",
        devices=("cpu",),
        options=(("adamw_mode", True),),
        capturable=False,
    ),
    Library(
        "optimi AdamW",
        "optimi",
        "AdamW",
        devices=("cpu", "cuda"),
        options=(),
        capturable=False,
        through_operators=True,
    ),
    Library(
        "FlashOptim FlashAdamW",  # with moments of 8 bits
        "flashoptim",
        "FlashAdamW",
        options=(),
        capturable=False,
        through_operators=None,
    ),
    Library("bitsandbytes AdamW", "bitsandbytes.optim", "AdamW", options=(), capturable=False, through_operators=True),
)


def find_libraries(device: str) -> tuple[list[Recipe], dict[str, str]]:
    """The recipes of the libraries that step on `device`, and why the others of them cannot be used, by name."""
    recipes, absent = [], {}
    for library in LIBRARIES:
        if device not in library.devices:
            continue
        try:
            recipes.append(library.recipe())
        except ImportError as error:
            absent[library.name] = str(error)
    return recipes, absent
