"""The emulator catches what it is there for: each planted fault is found, and the sound kernel beside it passes."""

import re
import subprocess

import emulator
import numpy as np
import pytest
import torch

# What is said of each fault of planted.cu: a line in the report, or "wrong result".
SAID = {
    "missing_syncthreads": "wrong result",
    "missing_grid_barrier": r"race: load of partials\[\d\] .* is not ordered after the store",
    "missing_release_fence": r"race: load of partials\[\d+\] .* is not ordered after the store",
    "missing_acquire_fence": r"race: load of partials\[\d+\] .* is not ordered after the store",
    "store_after_fence": r"race: load of partials\[\d\] .* is not ordered after the store",
    "missing_fence_in_relay": r"race: load of partials\[0\] .* is not ordered after the store",
    "overwritten_too_soon": r"race: (store|load) of partials\[\d+\] .* is not ordered after the (load|store)",
    "missing_syncwarp": r"race: load of out\[\d+\] .* is not ordered after the store|race: store of out",
    "static_shared_out_of_bounds": "shared memory of block . .* was written out of bounds",
    "dynamic_shared_out_of_bounds": "shared memory of block . .* was written out of bounds",
    "global_out_of_bounds": r"out of bounds: 4-byte store at planted.cu:\d+, near out\[\d+\]",
    "divergent_barrier": r"divergent barrier: at planted.cu:\d+ while others wait at planted.cu:\d+",
    "thread_left_before_barrier": r"thread 7 left while others .* wait|after threads of its block have left",
    "shuffle_with_exited_lanes": r"lane \d+ left while shuffle|names lane \d+, which has left",
    "shuffle_outside_mask": "reads lane 16, which is not in the mask",
    "block_left_before_grid_barrier": "left while others wait at the grid barrier|after threads of the grid have left",
    "grid_barrier_without_cooperation": r"grid barrier at planted.cu:\d+ in a launch that is not cooperative",
    "deadlock": r"deadlock: 4 threads poll at planted.cu:\d+; 252 have left",
    "misaligned_vector": r"misaligned 16-byte load of in\[\d+\]",
    "gradient_written": r"read-only: 4-byte store of in\[\d+\]",
}
# No report of one launch says these; the counts do.
COUNTED = ["dropped_tail", "chunk_twice"]
# ThreadSanitizer cannot be told what a fence leaves out.
UNKNOWN_TO_TSAN = ["store_after_fence", "missing_fence_in_relay"]
# What a sanitizer says in place of the report, or as well.
SANITIZERS = {
    "address,undefined": {
        "static_shared_out_of_bounds": "index 64 out of bounds|use-after-poison",
        "dynamic_shared_out_of_bounds": "use-after-poison",
    },
    "thread": {
        name: "WARNING: ThreadSanitizer: data race"
        for name in SAID
        if name.startswith(("missing", "overwritten")) and name not in UNKNOWN_TO_TSAN
    },
}


def run(program, case, kind, first_seed=0, seeds=1):
    done = subprocess.run([program, case, kind, str(first_seed), str(seeds)], capture_output=True, text=True)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address space layout is too random for ThreadSanitizer")
    done.reports = [emulator.parse(line) for line in done.stdout.splitlines()]
    return done


def said(done):
    faults = [fault for report in done.reports for fault in report.faults]
    return "\n".join([*faults, done.stderr, "wrong result" if done.returncode == 3 else ""])


@pytest.fixture(scope="module")
def planted():
    return emulator.program([emulator.HERE / "planted.cu"])


def test_every_case_is_tested(planted):
    cases = subprocess.run([planted], capture_output=True, text=True, check=True).stdout.split()
    assert sorted(cases) == sorted([*SAID, *COUNTED])


@pytest.mark.parametrize("case", [*SAID, *COUNTED])
def test_sound_kernel_passes_under_every_schedule(planted, case):
    done = run(planted, case, "sound", seeds=100)
    assert done.returncode == 0, done.stderr
    assert [report.faults for report in done.reports] == [[]] * 100


@pytest.mark.parametrize("case", SAID)
def test_planted_fault_is_caught_under_every_schedule(planted, case):
    for seed in range(20):
        assert re.search(SAID[case], said(run(planted, case, "faulty", seed))), f"seed {seed}"


def test_counts_are_exact(planted):
    elements = 1024 - 1
    traffic = run(planted, "dropped_tail", "sound").reports[0].traffic
    assert traffic["in"] == emulator.Traffic(
        loads=elements // 4 + 3, load_bytes=4 * elements, distinct_load_bytes=4 * elements
    )
    assert traffic["out"].stores == elements // 4 + 3
    assert traffic["out"].store_bytes == traffic["out"].distinct_store_bytes == 4 * elements


def test_counts_show_a_dropped_tail(planted):
    traffic = run(planted, "dropped_tail", "faulty").reports[0].traffic
    assert traffic["in"].load_bytes == 4 * (1024 - 4)


def test_counts_show_a_chunk_that_is_counted_twice_in_place_of_another(planted):
    traffic = run(planted, "chunk_twice", "faulty").reports[0].traffic
    assert traffic["in"].load_bytes == 4 * 1023
    assert traffic["in"].distinct_load_bytes == 4 * (1023 - 256)


def test_polls_are_no_traffic_and_depend_on_the_schedule(planted):
    reports = run(planted, "missing_release_fence", "sound", seeds=20).reports
    assert {report.traffic["ticket"].load_bytes for report in reports} == {0}
    assert {report.traffic["ticket"].atomics for report in reports} == {4}
    assert len({report.traffic["ticket"].polls for report in reports}) > 1
    assert len({(report.traffic["partials"].load_bytes, report.barriers, report.fences) for report in reports}) == 1


def test_same_seed_is_the_same_run_and_another_seed_another(planted):
    runs = [run(planted, "missing_grid_barrier", "faulty", first_seed=1, seeds=20).stdout for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0].splitlines())) > 10


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", SANITIZERS)
def test_sound_kernels_are_clean_under_sanitizers(sanitize):
    program = emulator.program([emulator.HERE / "planted.cu"], sanitize=sanitize)
    for case in [*SAID, *COUNTED]:
        done = run(program, case, "sound", seeds=5)
        assert (done.returncode, done.stderr) == (0, ""), case


@pytest.mark.slow
@pytest.mark.parametrize("sanitize", SANITIZERS)
def test_planted_faults_are_caught_under_sanitizers(sanitize):
    program = emulator.program([emulator.HERE / "planted.cu"], sanitize=sanitize)
    for case in SAID:
        if sanitize == "thread" and case in UNKNOWN_TO_TSAN:
            continue
        expected = SANITIZERS[sanitize].get(case, SAID[case])
        assert re.search(expected, said(run(program, case, "faulty", first_seed=1))), case


@pytest.mark.slow
def test_without_a_switch_for_this_processor_ucontext_does_it():
    program = emulator.program([emulator.HERE / "planted.cu"], flags=["-DEMU_UCONTEXT"])
    assert run(program, "missing_release_fence", "sound", seeds=10).returncode == 0
    assert "race" in said(run(program, "missing_release_fence", "faulty"))


KERNELS = """
#include "cuda_on_host.h"
#include "emulator.h"
__global__ void round_kernel(const float* x, __half* half, __nv_bfloat16* bfloat, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float value = emu::load(x + i);
  emu::store(half + i, __float2half_rn(value));
  emu::store(bfloat + i, __float2bfloat16_rn(value));
}
extern "C" void run_round(const float* x, void* half, void* bfloat, int n) {
  emu::launch(round_kernel, (n + 255) / 256, 256, 0, false, emu::session_seed(), x, static_cast<__half*>(half),
              static_cast<__nv_bfloat16*>(bfloat), n);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    source = tmp_path_factory.mktemp("kernels") / "round.cu"
    source.write_text(KERNELS)
    return emulator.load([source])


def test_half_types_round_as_torch_does(library):
    bits = np.random.default_rng(0).integers(0, 2**32, 7_000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[~np.isnan(x)]
    half, bfloat = np.zeros(x.size, np.int16), np.zeros(x.size, np.int16)
    with emulator.watching(library, seed=5, x=emulator.read_only(x), half=half, bfloat=bfloat) as launches:
        library.run_round(*(ctypes_pointer(array) for array in (x, half, bfloat)), x.size)
    assert launches[0].faults == []
    assert launches[0].traffic["half"].store_bytes == 2 * x.size
    expected = torch.from_numpy(x)
    assert np.array_equal(half, expected.half().view(torch.int16).numpy())
    assert np.array_equal(bfloat, expected.bfloat16().view(torch.int16).numpy())


def test_what_is_not_watched_is_out_of_bounds(library):
    x, half, bfloat = np.ones(8, np.float32), np.zeros(8, np.int16), np.zeros(8, np.int16)
    with emulator.watching(library, x=x, half=half) as launches:
        library.run_round(*(ctypes_pointer(array) for array in (x, half, bfloat)), x.size)
    assert "out of bounds: 2-byte store at round.cu:9" in launches[0].faults[0]


def ctypes_pointer(array):
    return emulator.ctypes.c_void_p(array.ctypes.data)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("__shared__ float sums[32];", "declare shared memory with EMU_SHARED"),
        ("atomicAdd(x, 1.f);", "static assertion failed"),
    ],
)
def test_what_would_mislead_does_not_compile(tmp_path, body, message):
    source = tmp_path / "bad.cu"
    source.write_text(f'#include "cuda_on_host.h"\n__global__ void bad_kernel(float* x) {{ {body} }}\n')
    with pytest.raises(RuntimeError, match=message):
        emulator.program([source])
