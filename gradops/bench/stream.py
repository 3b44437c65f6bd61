"""The plain read/write stream that every recipe's bandwidth is compared with; see stream.cpp."""

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

BYTES_PER_PARAM = 32
STREAMS = ("stream side_by_side", "stream in_turn")

_SOURCE = Path(__file__).with_name("stream.cpp")


@functools.cache
def _library() -> ctypes.CDLL:
    """Compiles the stream (a second) and loads it."""
    compiler = os.environ.get("CXX", "g++")
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC"]
    with tempfile.TemporaryDirectory() as folder:
        objects, library = Path(folder, "stream.o"), Path(folder, "libstream.so")
        subprocess.run([compiler, *flags, "-c", _SOURCE, "-o", objects], check=True)
        # Linked without -fopenmp, so that its loops run on torch's threads and not on a second pool beside them.
        subprocess.run([compiler, "-shared", objects, "-o", library], check=True)
        return ctypes.CDLL(str(library))  # loaded, it needs its file no more


def has_compiler() -> bool:
    """Whether the stream can be built; without it no share of the bandwidth is stated."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def make_streams(numel: int) -> dict[str, Callable[[], object]]:
    """One function for each order in which a step's arrays of `numel` float32 elements can be streamed."""
    arrays = [torch.zeros(numel, dtype=torch.float32, device="cpu") for _ in range(4)]
    pointers = [ctypes.c_void_p(array.data_ptr()) for array in arrays]

    def make(name: str) -> Callable[[], object]:
        function = getattr(_library(), name.replace(" ", "_"))
        function.restype = ctypes.c_float

        def stream(_keep: list[torch.Tensor] = arrays) -> object:
            return function(*pointers, ctypes.c_int64(numel))

        return stream

    return {name: make(name) for name in STREAMS}
