"""What the compiled kernels promise, read from their machine code; no GPU is needed.

Each gate is first shown kernels with a planted fault (machine_code/planted.cu) and must complain of exactly that.
"""

import functools

import pytest
from machine_code import gates, toolchain

pytestmark = pytest.mark.skipif(bool(toolchain.missing()), reason=f"not found: {', '.join(toolchain.missing())}")

THREADS = 512
ON_CHIP = 64 * 1024

PLANTED = {
    "good_kernel": set(),
    "parking_kernel": set(),
    "spilling_kernel": {"no_local_memory"},
    "local_array_kernel": {"no_local_memory"},
    "double_kernel": {"no_doubles_in_element_code"},
    "double_sum_kernel": {"no_doubles_in_element_code"},
    "double_call_kernel": {"no_doubles_in_element_code"},
    "scalar_kernel": {"vector_accesses"},
    "scalar_load_kernel": {"vector_accesses"},
    "scalar_store_kernel": {"vector_accesses"},
    "greedy_kernel": {"co_resident"},
}


@functools.cache
def planted(arch):
    return gates.read_cubin(toolchain.compile_cubin(toolchain.HERE / "planted.cu", arch))


@pytest.mark.parametrize("arch", toolchain.ARCHS)
def test_every_planted_kernel_is_examined(arch):
    assert planted(arch).keys() == PLANTED.keys()


@pytest.mark.parametrize("arch", toolchain.ARCHS)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_caught_by_its_gate_and_by_no_other(name, arch):
    code = gates.Compiled(*planted(arch)[name], arch, THREADS, ON_CHIP)
    assert gates.complaints(code).keys() == PLANTED[name]


@pytest.mark.parametrize("arch", toolchain.ARCHS)
def test_too_much_shared_memory_is_caught(arch):
    code = gates.Compiled(*planted(arch)["good_kernel"], arch, THREADS, 228 * 1024)
    assert gates.complaints(code).keys() == {"co_resident"}


@pytest.mark.parametrize(("arch", "kib"), [("80", 163), ("90", 227), ("100", 227), ("120", 99)])
def test_a_block_may_take_all_shared_memory_but_the_drivers(arch, kib):
    fits = functools.partial(toolchain.occupancy, arch, 128, 0, THREADS)
    assert fits(kib * 1024)["blocks"] == 1
    assert fits(kib * 1024 + 1)["blocks"] == 0
    assert fits(0)["blocks"] == 1
