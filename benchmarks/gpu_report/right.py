"""Stage 2: the tests of the step on the GPU, for native code in both forms and for Triton; and what only a GPU shows.

tests/test_cuda_device.py has streams, capture and 100 replays, the absence of synchronisation, and the profiler's count
of kernels; tests/test_same_result.py compares each backend and the operators with the CPU's.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.runner import Command, Target
from benchmarks.gpu_report.said import junit

# Each process computes its oracle on the CPU, with two threads.
NAME, AT_ONCE = "right", max(1, min(8, (os.cpu_count() or 2) // 2))
FILES = (
    "adam_step",
    "agc",
    "checkpoint",
    "clip",
    "decide",
    "first_moment",
    "grad_scaler",
    "grad_stats",
    "l1",
    "loss_scale",
    "master_weights",
    "moments_dtype",
    "native_faults",
    "own_grad_scaler",
    "recorder",
    "relative_step",
    "rounding",
    "same_bits",
    "same_result",
    "spike_guard",
    "stats",
    "step_plan",
    "update_stats",
)
REHEARSED = ("same_result", "decide")
TWO_LAUNCHES = ("-p", "benchmarks.gpu_report.two_launches")
INTERPRETED = {"TRITON_INTERPRET": "1"}


def commands(target: Target) -> list[Command]:
    device, files = target.device, REHEARSED if target.rehearsal else FILES
    found = [] if target.rehearsal else [_tests(target, "on the device", ["cuda_device"])]
    for backend, options, environ in (
        ("native", (), {}),
        ("triton", (), INTERPRETED if target.rehearsal else {}),
        ("two launches", TWO_LAUNCHES, {}),
    ):
        name = "triton" if backend == "triton" else "native"
        found += [
            _tests(target, f"{backend}: {file}", [file], ("-k", f"{name}-{device}", *options), environ)
            for file in files
        ]
    return found


def _tests(
    target: Target, part: str, files: list[str], options: tuple[str, ...] = (), environ: dict[str, str] | None = None
) -> Command:
    report = target.file(f"{part.replace(': ', '-').replace(' ', '-')}.xml")
    # The project's own options ask for plugins that may not be there.
    fixed = ("-q", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}")
    paths = tuple(f"tests/test_{file}.py" for file in files)
    argv = (sys.executable, "-m", "pytest", *fixed, *options, *paths)
    # Several run at once.
    return Command(part, argv, reader(report), environ={"OMP_NUM_THREADS": "2", **(environ or {})})


def reader(report: Path) -> Callable[[int, str], dict[str, Any]]:
    def read(returncode: int, output: str) -> dict[str, Any]:
        """Counts of tests, all of which must pass, and one at least; no report is left for the next run to read."""
        found = junit(report.read_text())
        report.unlink()
        if found["failed"]:
            raise ValueError("failed: " + ", ".join(found["failed"]))
        if not found["passed"]:
            raise ValueError("no test ran")
        return found

    return read
