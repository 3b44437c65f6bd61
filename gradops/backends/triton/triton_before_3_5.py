"""What Triton before 3.5 lacks and later versions have; with 3.5 or newer nothing here changes anything."""

import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
import triton.language as tl

BEFORE_3_5 = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 5)


def _constexpr_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """`triton.constexpr_function`: kernels call the function with constants, Python with what they stand for."""

    @functools.wraps(function)
    def called(*arguments: Any, _builder: Any = None, _semantic: Any = None) -> Any:
        result = function(*(value.value if isinstance(value, tl.constexpr) else value for value in arguments))
        from_python = _builder is None and _semantic is None
        return result if from_python else tl.constexpr(result)

    # Kernels may call no other functions than Triton's.
    called.__triton_builtin__ = True  # type: ignore[attr-defined]
    called.__module__ = tl.core.__name__
    return called


constexpr_function = getattr(triton, "constexpr_function", _constexpr_function)

HAS_MASK = tl.constexpr("mask" in inspect.signature(tl.histogram).parameters)  # not in 3.3


@triton.jit
def histogram_of(bins, inside, SIZE: tl.constexpr):
    """How many of the values that are `inside` are in each bin; the last bin must have none."""
    if HAS_MASK:
        counts = tl.histogram(bins, SIZE, mask=inside)
    else:
        counts = tl.histogram(tl.where(inside, bins, SIZE - 1), SIZE)
        counts = tl.where(tl.arange(0, SIZE) == SIZE - 1, 0, counts)
    return counts


@functools.cache
def name_by_sources_before_3_5(kernel: Any) -> None:
    """Has compiled code found again by all sources of the kernels, as Triton keeps it from one process to the next.

    Triton before 3.5 finds it by those of the functions alone: after a change of a constant it would run the old code.
    """
    if BEFORE_3_5 and hasattr(kernel, "cache_key"):  # the interpreter compiles nothing
        kernel.hash = f"{kernel.cache_key}-{_sources()}"


@functools.cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
