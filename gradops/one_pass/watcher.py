"""Who is called after an optimizer's steps: cheaper than torch's step hooks, which open a profiler's range."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor


class StepWatcher(Protocol):
    """What the optimizer calls on those who watch it (`engine.watch`); none of it may wait for the device."""

    def loss(self, loss: Tensor) -> None:
        """`backward(loss)` was called; `loss` is unscaled."""

    def after_step(self, loss: Any) -> None:
        """A step is done and `optimizer.stats` has what it measured; `loss` is what its closure returned, else None."""

    def after_load(self) -> None:
        """A checkpoint was loaded, and with it the step counters."""

    def paused(self) -> AbstractContextManager[None]:
        """Steps inside the block are none of the training's."""

    def close(self) -> None:
        """The optimizer is about to become plain torch's."""
