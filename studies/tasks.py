"""What the sweep's networks learn: the demo's canvases or single digits, some batches of them spoilt."""

import functools
from dataclasses import replace

import torch
from torch import Tensor

from gradops.demo import digits, make_task
from gradops.demo.digits import CLASSES, Canvases, Digits
from gradops.demo.training import Task
from studies.residual_mlp import ResidualMLP

BRIGHTNESS = 20.0


class BadBatches(Canvases):
    """Canvases of which some batches are far too bright, with every label wrong.

    Args:
        canvases: the good ones.
        at: which batches are bad, counted from 0 in the order in which they are taken.
    """

    def __init__(self, canvases: Canvases, at: tuple[int, ...]) -> None:
        super().__init__(canvases.images, canvases.labels)
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "taken", [0])

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        pictures, labels = super().batch(index)
        number = self.taken[0]
        self.taken[0] += 1
        return (pictures * BRIGHTNESS, 1.0 - labels) if number in self.at else (pictures, labels)


def task_for(network: torch.nn.Module, seed: int, train_canvases: int, held_out_canvases: int) -> Task:
    """Single digits for a network of linear layers, else canvases."""
    if isinstance(network, ResidualMLP):
        train, held_out = map(_single, digits.load_digits())
        return Task(train, held_out, seed)
    return _canvases(seed, train_canvases, held_out_canvases)


# Jobs come seed by seed, and composing canvases takes seconds.
@functools.lru_cache(maxsize=1)
def _canvases(seed: int, train: int, held_out: int) -> Task:
    return make_task(seed, 0, 0.0, "fp32", train, held_out)


def _single(of: Digits) -> Canvases:
    labels = torch.nn.functional.one_hot(torch.from_numpy(of.classes), CLASSES)
    return Canvases(torch.from_numpy(of.images)[:, None], labels.float())


def spoil(task: Task, bad_batches: int) -> Task:
    """The task with bad batches, evenly spread over its steps."""
    at = tuple(task.steps * number // (bad_batches + 1) for number in range(1, bad_batches + 1))
    return replace(task, train=BadBatches(task.train, at))
