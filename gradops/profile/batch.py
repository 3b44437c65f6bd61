"""The largest batch that fits."""

from collections.abc import Callable

import torch

from gradops.profile import memory, trace
from gradops.profile.loop import Settings, TorchLoop
from gradops.profile.training import Source

MOST = 2**16


def largest(fits: Callable[[int], bool], most: int = MOST) -> int:
    """The largest batch size up to `most` that fits, to an eighth of itself; 0 if not even 1 does.

    Doubles until one does not fit, then halves the gap.
    """
    size = 1
    if not fits(size):
        return 0
    while size < most and fits(2 * size):
        size *= 2
    good, bad = size, 2 * size
    while size < most and bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def peak(source: Source, settings: Settings, batch_size: int) -> int:
    """Bytes that a step of torch's takes at most, the optimizer's state included."""
    loop = TorchLoop(source.make(batch_size), settings)
    loop.step()
    return memory.measure(loop, trace.record([loop], 1).steps(loop.name)[0]).peak


def search(source: Source, settings: Settings, limit: float | None, report: Callable[[int, int | None], object]) -> int:
    """The largest batch size whose step with torch stays below `limit` bytes, and on a GPU is not refused.

    Args:
        source: what is trained.
        settings: how.
        limit: bytes; None for what the GPU has.
        report: called with each batch size and its peak, None where there was no memory for it.
    """

    def fits(batch_size: int) -> bool:
        try:
            taken = peak(source, settings, batch_size)
        except torch.OutOfMemoryError:
            report(batch_size, None)
            torch.cuda.empty_cache()
            return False
        report(batch_size, taken)
        return limit is None or taken <= limit

    return largest(fits)
