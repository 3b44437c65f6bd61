"""The CUDA kernel of activation_stats, on the emulator, against numpy in float64."""

import ctypes
import math
from pathlib import Path

import emulator
import numpy as np
import pytest
import torch
from activation_oracle import BETWEEN_FLOATS, COUNTED, agrees
from cases import DTYPES, lay_out

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNEL = CSRC / "cuda" / "activation_stats.cu"
STRIP = 4096
PIECE = 512


def library(kernel):
    lib = emulator.load([HERE / "activation_stats.cu", kernel], flags=[f"-I{CSRC}"])
    address, whole = ctypes.c_void_p, ctypes.c_int64
    lib.run.argtypes = [address, address, whole, whole, ctypes.c_double, *[address] * 4, whole]
    assert lib.strip_elements() == STRIP
    return lib


@pytest.fixture(scope="module")
def lib():
    return library(KERNEL)


def layout_of(tensor):
    """How dimensions are passed to the kernel: their number, then size and stride of each; None where it needs none."""
    if tensor.is_contiguous():
        return None
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return np.array([tensor.dim(), *(number for pair in pairs for number in pair)], dtype=np.int64)


def memory_of(tensor):
    """All the bytes that hold the tensor's elements."""
    flat = torch.as_strided(
        tensor, (sum(s * (n - 1) for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1,), (1,)
    )
    return flat.view(torch.int16 if tensor.element_size() == 2 else torch.int32).numpy()


def measured(lib, x, blocks=3, near_zero=1e-3, seed=5, looks=1):
    count = -(-x.numel() // STRIP)
    strips = np.zeros(max(1, count) * lib.strip_bytes(), dtype=np.uint8)
    totals = np.zeros(lib.totals_bytes() // 8, dtype=np.int64)
    measures, counts = np.zeros(3, dtype=np.float32), np.full(COUNTED, -1, dtype=np.int64)
    layout = layout_of(x)
    arrays = {"totals": totals, "strips": strips, "measures": measures, "counts": counts}
    arrays |= {} if layout is None else {"layout": emulator.read_only(layout)}
    arrays |= {"x": emulator.read_only(memory_of(x))} if x.numel() else {}
    with emulator.watching(lib, seed=seed, **arrays) as launches:
        lib.run(
            x.data_ptr(), None if layout is None else layout.ctypes.data, DTYPES.index(x.dtype), x.numel(), near_zero,
            *(array.ctypes.data for array in (strips, totals, measures, counts)), blocks,
        )  # fmt: skip
    (launch,) = launches
    assert launch.faults == []
    if x.numel():
        assert launch.traffic["x"].load_bytes == looks * x.numel() * x.element_size()
    return torch.from_numpy(measures), torch.from_numpy(counts)


SIZES = [0, 1, 31, 512, 513, STRIP - 1, STRIP + 1, 20 * STRIP + 77]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_size_and_dtype(lib, dtype, size):
    x = torch.randn(size).relu().to(dtype)
    agrees(*measured(lib, x), x)


@pytest.mark.parametrize("layout", ["misaligned", "transposed", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_layout(lib, dtype, layout):
    x = lay_out(torch.randn(37, 41, 3).to(dtype), layout)
    agrees(*measured(lib, x), x)


@pytest.mark.parametrize("scale", [1e-44, 1e-20, 1e20, 3e38])
def test_huge_and_tiny_values_are_looked_at_again(lib, scale):
    x = (torch.rand(3 * STRIP) * 2 - 1) * scale
    agrees(*measured(lib, x, looks=2), x)


@pytest.mark.parametrize("size", [STRIP, 36 * STRIP + 5])  # of one lane; of more than one warp merges
@pytest.mark.parametrize("first", [None, math.nan])
def test_a_mean_far_from_zero_costs_no_precision(lib, first, size):
    x = torch.randn(size) * 0.01 + 1000.0
    if first is not None:
        x[:PIECE] = first
    agrees(*measured(lib, x), x)


def test_a_mean_between_two_floats_costs_no_precision(lib):
    agrees(*measured(lib, BETWEEN_FLOATS), BETWEEN_FLOATS)


@pytest.mark.parametrize("near_zero", [0.0, 1e-3])
def test_what_is_as_far_from_zero_as_the_bound_is_near_zero(lib, near_zero):
    bound = torch.tensor(near_zero)
    x = torch.stack([bound, -bound, bound.nextafter(torch.tensor(1.0)), torch.tensor(1.0)]).repeat(70)
    agrees(*measured(lib, x, near_zero=near_zero), x, near_zero)


def test_pieces_whose_means_lie_far_apart(lib):
    x = torch.randn(3 * STRIP) * 0.01
    x[600:] += 1000
    x[STRIP:] += 1e5
    agrees(*measured(lib, x), x)


@pytest.mark.parametrize("values", [[math.nan], [math.inf, -math.inf], [0.0, -0.0, math.nan], [-1.0, math.inf, 2.0]])
def test_what_is_not_finite_is_counted_apart(lib, values):
    x = torch.tensor(values * 700)
    agrees(*measured(lib, x), x)


def test_same_bits_for_any_grid_and_schedule(lib):
    x = torch.randn(9 * STRIP + 100) + 3
    first = measured(lib, x, blocks=1, seed=0)
    for blocks, seed in ((2, 1), (3, 9), (8, 4)):
        for mine, other in zip(first, measured(lib, x, blocks, seed=seed), strict=True):
            assert torch.equal(mine, other)
