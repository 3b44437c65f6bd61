"""The plain read/write stream that every recipe's bandwidth is compared with; see stream.cpp."""

import ctypes
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

BYTES_PER_PARAM = 32
ORDERS = ("side_by_side", "in_turn")

_SOURCE = Path(__file__).with_name("stream.cpp")
_LIBRARY = _SOURCE.parent.parent / "build" / "libstream.so"


@functools.cache
def _library() -> ctypes.CDLL:
    """Compiles the stream (a second) and loads it."""
    _LIBRARY.parent.mkdir(exist_ok=True)
    compiler = os.environ.get("CXX", "g++")
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC"]
    objects = _LIBRARY.with_suffix(".o")
    subprocess.run([compiler, *flags, "-c", _SOURCE, "-o", objects], check=True)
    # Linked without -fopenmp, so that its loops run on torch's threads and not on a second pool beside them.
    subprocess.run([compiler, "-shared", objects, "-o", _LIBRARY], check=True)
    return ctypes.CDLL(str(_LIBRARY))


def make_streams(numel: int) -> dict[str, Callable[[], object]]:
    """One function for each order in which a step's arrays of `numel` float32 elements can be streamed."""
    arrays = [torch.zeros(numel) for _ in range(4)]
    pointers = [ctypes.c_void_p(array.data_ptr()) for array in arrays]

    def make(order: str) -> Callable[[], object]:
        function = getattr(_library(), f"stream_{order}")
        function.restype = ctypes.c_float

        def stream(_keep: list[torch.Tensor] = arrays) -> object:
            return function(*pointers, ctypes.c_int64(numel))

        return stream

    return {f"stream {order}": make(order) for order in ORDERS}
