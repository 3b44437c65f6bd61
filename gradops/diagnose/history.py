"""A series beside its own past: where it left it, and by how much."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Series = NDArray[np.float64]

WINDOW = 50
# Fewer steps are no history; a training's first ones change by themselves.
LEAST = 15
# Ten times the usual value, twice the largest of the window, and far outside the usual scatter: healthy runs of small
# batches reach any two of the three.
FACTOR, OVER_LARGEST, SCATTERS = 10.0, 2.0, 6.0
SMALLEST_SCATTER = 0.1
# A growth too slow to leave a window is one over the quietest time so far.
SLOW_FACTOR = 300.0


@dataclass(frozen=True)
class Departure:
    """A row at which a series stood far above its history: its value there, and the usual one."""

    row: int
    value: float
    usual: float

    @property
    def ratio(self) -> float:
        return self.value / self.usual


def departures(values: ArrayLike) -> list[Departure]:
    """Every row at which a series stood far above its own history.

    Args:
        values: [S]. Zeros and non-finite values, which have no logarithm, count as the value before them.
    """
    series = np.asarray(values, dtype=np.float64)
    decades = np.log10(_filled(series))
    median, scatter, largest = _before(decades)
    spread = np.maximum(np.log10(FACTOR), SCATTERS * np.maximum(scatter, SMALLEST_SCATTER))
    quietest = np.fmin.accumulate(median)
    sudden = (decades > median + spread) & (decades > largest + np.log10(OVER_LARGEST))
    slow = decades > quietest + np.log10(SLOW_FACTOR)
    found = np.flatnonzero((sudden | slow) & np.isfinite(series) & (series > 0))
    usual = 10 ** np.where(sudden, median, quietest)
    return [Departure(int(row), float(series[row]), float(usual[row])) for row in found]


def _before(decades: Series) -> tuple[Series, Series, Series]:
    """Median, scatter and maximum of the window before each value; NaN where that is too short.

    The scatter is the median absolute deviation times 1.48, the standard deviation of normal values.
    """
    padded = np.concatenate([np.full(WINDOW, np.inf), decades])
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[:-1], axis=1)
    counts = np.minimum(np.arange(len(decades)), WINDOW)
    median = np.where(counts < LEAST, np.nan, _middle(windows, counts))
    scatter = 1.48 * _middle(np.sort(np.abs(windows - median[:, None]), axis=1), counts)
    largest = np.take_along_axis(windows, np.maximum(counts - 1, 0)[:, None], axis=1)[:, 0]
    return median, scatter, largest


def _middle(ascending: Series, counts: NDArray[np.int64]) -> Series:
    """The median of the first `counts` values of each row, which are the smallest."""
    around = np.stack([np.maximum(counts - 1, 0) // 2, np.minimum(counts // 2, WINDOW - 1)], axis=1)
    return np.take_along_axis(ascending, around, axis=1).mean(axis=1)


def _filled(series: Series) -> Series:
    """The series with what has no logarithm replaced by the value before it, or by the first one."""
    good = np.isfinite(series) & (series > 0)
    if not good.any():
        return np.ones_like(series)
    last = np.maximum.accumulate(np.where(good, np.arange(len(series)), -1))
    return np.where(last >= 0, series[np.maximum(last, 0)], series[np.argmax(good)])


def runs_to_the_end(flags: NDArray[np.bool_]) -> int | None:
    """The first row from which a flag is set in every row to the last; None if the last is not set."""
    if not len(flags) or not flags[-1]:
        return None
    clear = np.flatnonzero(~flags)
    return int(clear[-1]) + 1 if len(clear) else 0
