"""Triton's interpreter, made to round, to check and to count as a GPU would. For Triton 3.3 and newer.

What still differs from a GPU, and is not seen by tests that run in it: programs run one after another (in the order
that `shuffled` draws, but never at the same time), so neither a race nor a missing fence shows; memory has no cache, so
eviction hints do nothing; `exp2`, `log2` and float64 roots are NumPy's, which are closer to the truth than a GPU's fast
ones; nothing is aligned, vectorized or spilled (test_triton_code.py looks at that); subnormal numbers are kept, as they
are on NVIDIA's and AMD's devices by default.
"""

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

TESTS = Path(__file__).resolve().parents[1]
BFLOAT16_NAN = np.uint16(0x7FFF)


def to_bfloat16(values):
    """float32 to the bits of bfloat16, to nearest even; the interpreter itself cuts the lower half off."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), BFLOAT16_NAN, rounded).astype(np.uint16)


def from_bfloat16(bits):
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32)


def _cast(self, src, dst_type):
    data, target = src.data, dst_type.scalar
    if src.dtype.scalar == tl.bfloat16:
        data = from_bfloat16(data)
    with np.errstate(over="ignore", invalid="ignore"):
        if target == tl.bfloat16:
            data = to_bfloat16(data)
        else:
            data = np.asarray(data).astype(interpreter._get_np_dtype(dst_type))
    return interpreter.TensorHandle(data, target)


class Meter:
    """Bytes that kernels load and store, and the memory they may touch; with no memory named, all of it."""

    def __init__(self):
        self.loaded = 0
        self.stored = 0
        self.ranges = []

    def allow(self, *tensors):
        for tensor in tensors:
            begin = tensor.untyped_storage().data_ptr()
            self.ranges.append((begin, begin + tensor.untyped_storage().nbytes()))

    def check(self, pointers, mask, size, what):
        """Returns how many bytes are accessed; raises IndexError for any outside the ranges."""
        mask = np.broadcast_to(mask, pointers.shape).reshape(-1)
        places = pointers.reshape(-1)[mask].astype(np.uint64)
        inside = np.zeros(places.shape, bool)
        for begin, end in self.ranges:
            inside |= (places >= begin) & (places + np.uint64(size) <= end)
        if self.ranges and not inside.all():
            first = int(places[~inside][0])
            raise IndexError(f"Triton {what} out of bounds: {int((~inside).sum())} lanes, the first at {first:#x}")
        return places.size * size


def install():
    """Repairs the cast and what is loaded nowhere, and makes calls cheap, for the rest of the process."""
    np.seterr(all="ignore")  # a GPU has no warnings
    interpreter.InterpreterBuilder.cast_impl = _cast
    plain = interpreter.InterpreterBuilder.create_fp_to_fp
    nearest = interpreter._ir.ROUNDING_MODE.RTNE

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        if dst_type.scalar == tl.bfloat16 and rounding_mode in (None, nearest):
            return _cast(self, src, dst_type)
        return plain(self, src, dst_type, rounding_mode)

    interpreter.InterpreterBuilder.create_fp_to_fp = create_fp_to_fp
    load = interpreter.InterpreterBuilder.create_masked_load

    def create_masked_load(self, ptrs, mask, other, *hints):
        """A GPU leaves anything in lanes that load nothing and have no `other`: here NaN, or all ones."""
        if other is None and not mask.data.all():
            kind = ptrs.get_element_ty()
            dtype = np.dtype(interpreter._get_np_dtype(kind))
            anything = np.frombuffer(b"\xff" * dtype.itemsize, dtype)[0]
            other = interpreter.TensorHandle(np.full(ptrs.data.shape, anything), kind)
        return load(self, ptrs, mask, other, *hints)

    interpreter.InterpreterBuilder.create_masked_load = create_masked_load
    patch = interpreter._patch_lang
    nothing_to_undo = getattr(interpreter, "_LangPatchScope", lambda: None)  # Triton 3.4 and older undo nothing

    def patch_once(fn):
        """A function that a kernel calls finds the language patched; to do it again takes most of a test's time."""
        seen = [module for module in (tl, tl.core) if module in fn.__globals__.values()]
        plain = any(tl.core.is_builtin(module.load) for module in seen)
        return patch(fn) if plain else nothing_to_undo()

    interpreter._patch_lang = patch_once


@contextlib.contextmanager
def metered(meter):
    """Counts and checks every access in the block."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def size_of(pointers):
        return max(8, pointers.get_element_ty().primitive_bitwidth) // 8

    def counted_load(self, pointers, mask, *args, **kwargs):
        meter.loaded += meter.check(pointers.data, mask.data, size_of(pointers), "load")
        return load(self, pointers, mask, *args, **kwargs)

    def counted_store(self, pointers, value, mask, *args, **kwargs):
        meter.stored += meter.check(pointers.data, mask.data, size_of(pointers), "store")
        return store(self, pointers, value, mask, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    try:
        yield meter
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


@contextlib.contextmanager
def shuffled(seed):
    """Runs the programs of every launch in the block in an order drawn by the seed."""
    builder, draw, order = interpreter.InterpreterBuilder, random.Random(seed), []
    plain = builder.set_grid_idx

    def set_grid_idx(self, x, y, z):
        if x == 0:
            order[:] = draw.sample(range(self.grid_dim[0]), self.grid_dim[0])
        plain(self, order[x], y, z)

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        builder.set_grid_idx = plain


def run_interpreted(*arguments):
    """Runs tests in a pytest of their own; the files are named from the folder of all tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=interpreter"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command += [str(TESTS / name) if name.endswith(".py") else name for name in arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
