"""A sharded step allocates nothing of the shards' size."""

import ctypes
import gc
import sys

import pytest
import torch
from cases import needs_native
from peak_memory import peak_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import gradops
from gradops.distributed import gather

TENSORS, LOCAL = 1000, (64, 64)  # 16 MB of parameters on each process
SETTINGS = (
    {},
    {"max_norm": 1.0, "clip_value": 1.0, "loss_scale": 64.0},
    {"max_norm": 1.0, "norm_type": 3.0, "max_relative_step": 0.05, "track_updates": True},
    {"max_norm": 0.01, "clip_mode": "agc"},
)


def _peak_of(action):
    """KiB; what was freed before is given back first, or a temporary may lie in memory that is held anyway."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return peak_of(action)


def peaks_of_steps(most_gathered):
    """KiB that a third step takes at its peak, with each of the settings, and what a temporary of 4 MiB takes."""
    mesh = init_device_mesh("cpu", (2,))
    params = [torch.nn.Parameter(DTensor.from_local(torch.full(LOCAL, 0.1), mesh, [Shard(0)])) for _ in range(TENSORS)]
    for param in params:
        param.grad = DTensor.from_local(torch.full(LOCAL, 0.01), mesh, [Shard(0)])
    found, gather.MOST_GATHERED, before = [], most_gathered, gather.MOST_GATHERED
    try:
        for settings in SETTINGS:
            optimizer = gradops.AdamW(params, backend="native", **settings)
            for _ in range(2):
                optimizer.scale(torch.zeros(()))
                optimizer.step()
            optimizer.scale(torch.zeros(()))
            found.append(_peak_of(optimizer.step))
            assert int(optimizer.stats.steps_taken) == 3
    finally:
        gather.MOST_GATHERED = before
    return found, _peak_of(lambda: torch.full((1 << 20,), 1.0))


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "most_gathered",
    [pytest.param(gather.MOST_GATHERED, id="gathered"), pytest.param(0, id="reduced", marks=pytest.mark.slow)],
)
def test_peak_extra_memory_of_a_sharded_step_is_below_2_mb(workers, most_gathered):
    for steps, four_mib in workers.run(2, peaks_of_steps, most_gathered):
        assert four_mib > 3500, "the meter does not see a temporary of 4 MiB"
        assert max(steps) < 2000, f"the steps took {steps} KiB"
