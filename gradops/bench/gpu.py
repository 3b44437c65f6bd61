"""Clocks of a GPU, and steps captured as CUDA graphs.

A recipe is timed four ways: the GPU's own time between two events with nothing of the arrays left in its L2 cache, the
same for a replay of the step captured in a CUDA graph, the time of a call when calls follow each other without a pause,
which for many small tensors is the host's, and the time until a call returns.
"""

import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]


class Gpu:
    """Clocks of the current device."""

    WARMUPS = 3
    READS = 5
    BACK_TO_BACK = 20

    def __init__(self) -> None:
        self.properties = torch.cuda.get_device_properties()
        # Four times the cache, read and not written: what is dirty in the cache is then written back before the clock
        # starts, and nothing of ours is.
        self._other = torch.zeros(self.properties.L2_cache_size, dtype=torch.float32, device="cuda")

    def own_time(self, step: Step) -> float:
        """Seconds from the GPU's start on one call to its end, from a cold L2 cache.

        The host is ahead by the time the GPU reads for. Where its work for a call takes longer, as for thousands of
        tensors it does with some recipes, the GPU's waits for it are in the figure.
        """
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        for _ in range(self.READS):
            self._other.sum()
        begin.record()
        step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3

    def back_to_back(self, step: Step) -> float:
        """Seconds a call takes when the next one follows at once, the host's work included."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(self.BACK_TO_BACK):
            step()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / self.BACK_TO_BACK

    def host_time(self, step: Step) -> float:
        """Seconds until a call returns, of a GPU that has nothing to do; a step that waits has its GPU time in them."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
        return seconds

    def copy_bandwidth(self) -> float:
        """Bytes a second that a copy of a large array reads and writes: what the device can do."""
        source = torch.zeros(2**28, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        samples = [self.own_time(lambda: target.copy_(source)) for _ in range(20)]
        return 2 * source.numel() / statistics.median(samples)


def warm(step: Step) -> Step:
    """The step, after the calls in which it makes its state, compiles and allocates."""
    for _ in range(Gpu.WARMUPS):
        step()
    torch.cuda.synchronize()
    return step


def captured(step: Step) -> Step:
    """A replay of the step as a CUDA graph; raises RuntimeError for one that waits for the GPU."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        warm(step)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return warm(graph.replay)
