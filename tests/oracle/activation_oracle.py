"""Statistics of activations in numpy and float64, and whether a backend's are these."""

import math

import numpy as np
import pytest
import torch
from tolerances import ACTIVATION_MEAN, ACTIVATION_STD

from gradops.record.activations import histogram_edges

EDGES = np.array(histogram_edges())
CHUNK = 4096
COUNTED = 4 + len(EDGES) + 1
SMALLEST = 2.0**-149  # of float32
BETWEEN_FLOATS = torch.tensor([2.0**17, 2.0**17 + 2.0**-6]).repeat(2 * CHUNK)  # their mean is no float32


def expected(x, near_zero=1e-3):
    """The oracle: mean, std, abs_max; counts."""
    values = x.detach().double().cpu().numpy().reshape(-1)
    finite = values[np.isfinite(values)]
    # A value on an edge belongs to the bin farther from 0, and 0 to the first positive one.
    bins = np.where(finite < 0, np.searchsorted(EDGES, finite, "left"), np.searchsorted(EDGES, finite, "right"))
    histogram = np.bincount(bins, minlength=len(EDGES) + 1)
    counts = [
        values.size,
        (np.abs(values) <= np.float32(near_zero)).sum(),
        (finite < 0).sum(),
        values.size - finite.size,
        *histogram,
    ]
    if not finite.size:
        return (math.nan, math.nan, math.nan), counts
    return (finite.mean(), finite.std(), np.abs(finite).max()), counts


def agrees(measures, counts, x, near_zero=1e-3):
    """Whether these are the statistics of `x`."""
    (mean, std, abs_max), oracle = expected(x, near_zero)
    assert counts.tolist() == oracle
    assert (measures.dtype, counts.dtype, measures.device) == (torch.float32, torch.int64, x.device)
    if math.isnan(mean):
        assert measures.isnan().all()
        return
    values = measures.tolist()
    for value, oracle, allowed in ((values[0], mean, ACTIVATION_MEAN), (values[1], std, ACTIVATION_STD)):
        assert value == pytest.approx(oracle, rel=allowed.rtol, abs=allowed.atol * abs_max + SMALLEST)
    assert values[2] == np.float32(abs_max)
