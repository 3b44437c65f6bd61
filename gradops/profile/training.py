"""What is trained: a model by its name on random images, or what the user's own function returns."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gradops.bench.optimizers import subject
from gradops.bench.zoo import ModelError, load_function, make_model
from gradops.optim.classes import torchs_class
from gradops.optim.wrap import TAKEN, rule_for

CLASSES = 1000
# Batches of a user's data that are kept and taken in turns, so that loading is no part of what is compared.
KEPT_BATCHES = 8
DEMO = "demo"


@dataclass(frozen=True)
class Training:
    """A model, its optimizer, batches of (inputs, targets), and loss(outputs, targets)."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: list[tuple[Tensor, Tensor]]
    loss: Callable[[Any, Any], Tensor]

    @property
    def batch_size(self) -> int:
        return len(self.batches[0][0])


@dataclass(frozen=True)
class Source:
    """How to make a training anew, always the same.

    Attributes:
        model: `DEMO`, a name of torchvision or timm, or "path.py:function"; see `make`.
        image_size: side of the random images.
        optimizer: of gradops, in capitals or not.
        form: of the native optimizer, a key of `gradops.bench.optimizers.FORMS`; None for the fastest that it has.
        device: where it trains.
        checkpointing: keep blocks' inputs in place of their activations, which backward then computes again.
        seed: of weights and images.
    """

    model: str
    image_size: int = 224
    optimizer: str = "AdamW"
    form: str | None = None
    device: str = "cpu"
    checkpointing: bool = False
    seed: int = 0

    @property
    def is_own(self) -> bool:
        """Whether the user's function makes everything."""
        return ".py:" in self.model

    def make(self, batch_size: int | None, ours: bool = False) -> Training:
        """Model, optimizer and batches.

        The optimizer is the native one, and with `ours` that of gradops where the native one cannot be wrapped.

        A user's function returns (model, optimizer, data, loss), data being an iterable of (inputs, targets); it is
        called with `batch_size` if it has a parameter of that name.

        Raises:
            ModelError: it cannot be made; the message says why.
        """
        torch.manual_seed(self.seed)
        training = self._own(batch_size) if self.is_own else self._by_name(batch_size or 32, ours)
        if self.checkpointing:
            checkpoint_blocks(training.model)
        return training

    def _own(self, batch_size: int | None) -> Training:
        function = load_function(self.model)
        takes_size = "batch_size" in inspect.signature(function).parameters
        if batch_size is not None and not takes_size:
            raise ModelError(f"{self.model} has no parameter batch_size, so that --batch-size cannot reach it")
        made = function(**({"batch_size": batch_size} if batch_size is not None else {}))
        if not isinstance(made, tuple) or len(made) != 4:
            raise ModelError(f"{self.model} must return (model, optimizer, data, loss), got {type(made).__name__}")
        model, optimizer, data, loss = made
        if rule_for(optimizer) is None:
            raise ModelError(f"the optimizer must be one of {TAKEN}, got {type(optimizer).__name__}")
        return Training(model, optimizer, self._kept(data), loss)

    def _kept(self, data: Iterable[Any]) -> list[tuple[Tensor, Tensor]]:
        batches = [(inputs.to(self.device), targets.to(self.device)) for inputs, targets in islice(data, KEPT_BATCHES)]
        if not batches:
            raise ModelError("the data has no batch")
        return batches

    def _by_name(self, batch_size: int, ours: bool) -> Training:
        model, shape, classes = self._network()
        model.to(self.device)
        inputs = torch.randn(batch_size, *shape, dtype=next(model.parameters()).dtype, device=self.device)
        targets = torch.randint(classes, (batch_size,), dtype=torch.int64, device=self.device)
        optimizer = self._optimizer(model, ours)
        return Training(model, optimizer, [(inputs, targets)], nn.functional.cross_entropy)

    def _optimizer(self, model: nn.Module, ours: bool) -> torch.optim.Optimizer:
        of = subject(self.optimizer)
        if ours and torchs_class(of.ours) is None:
            return of.ours(model.named_parameters(), lr=1e-3, **of.options)
        name = f"{of.library} {self.form}" if self.form else list(of.forms)[-1]
        if name not in of.forms:
            raise ModelError(f"{of.library}'s {of.theirs.__name__} has no form {self.form}, only {', '.join(of.forms)}")
        cls: Any = of.theirs
        made: torch.optim.Optimizer = cls(model.named_parameters(), lr=1e-3, **of.options, **of.forms[name])
        return made

    def _network(self) -> tuple[nn.Module, tuple[int, ...], int]:
        if self.model == DEMO:
            from gradops.demo.network import CANVAS_SIDE, ResidualNet
            from gradops.demo.network import CLASSES as LABELS

            return ResidualNet(normalise=True), (1, CANVAS_SIDE, CANVAS_SIDE), LABELS
        return make_model(self.model), (3, self.image_size, self.image_size), CLASSES


def checkpoint_blocks(model: nn.Module) -> None:
    """Checkpoints every block: an element of a Sequential or ModuleList that has modules, but no such block, inside.

    Raises:
        ModelError: the model has no such block.
    """
    blocks = [block for block in _elements(model) if not any(_elements(block))]
    if not blocks:
        raise ModelError("--checkpointing: the model has no blocks in a Sequential or ModuleList")
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _elements(model: nn.Module) -> Iterator[nn.Module]:
    """Elements of the model's Sequentials and ModuleLists that have modules of their own."""
    for container in model.modules():
        if isinstance(container, nn.Sequential | nn.ModuleList):
            yield from (child for child in container if any(True for _ in child.children()))
