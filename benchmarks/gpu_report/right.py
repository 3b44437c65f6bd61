"""Stage 2: the tests of the step on the GPU, for native code in both forms and for Triton; and what only a GPU shows.

tests/backends/test_cuda_device.py has streams, capture and 100 replays, the absence of synchronisation, and the
profiler's count of kernels, test_cuda_shards.py the steps of shards; test_same_result.py compares each backend
and the operators with the CPU's.
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
    "tests/backends/test_same_bits.py",
    "tests/backends/test_same_result.py",
    "tests/optimizer/test_checkpoint.py",
    "tests/optimizer/test_grad_scaler.py",
    "tests/optimizer/test_native_faults.py",
    "tests/optimizer/test_own_grad_scaler.py",
    "tests/optimizer/test_stats.py",
    "tests/optimizer/test_weight_ema.py",
    "tests/step/test_adam_step.py",
    "tests/step/test_agc.py",
    "tests/step/test_clip.py",
    "tests/step/test_decide.py",
    "tests/step/test_first_moment.py",
    "tests/step/test_grad_stats.py",
    "tests/step/test_l1.py",
    "tests/step/test_loss_scale.py",
    "tests/step/test_master_weights.py",
    "tests/step/test_moments_dtype.py",
    "tests/step/test_relative_step.py",
    "tests/step/test_rounding.py",
    "tests/step/test_spike_guard.py",
    "tests/step/test_step_plan.py",
    "tests/step/test_update_stats.py",
    "tests/tools/test_recorder.py",
)
REHEARSED = ("tests/backends/test_same_result.py", "tests/step/test_decide.py")
ON_THE_DEVICE = ("tests/backends/test_cuda_device.py", "tests/backends/test_cuda_shards.py")
FORMS = ("native", "triton", "two launches")
TWO_LAUNCHES = ("-p", "benchmarks.gpu_report.two_launches")
INTERPRETED = {"TRITON_INTERPRET": "1"}


def commands(target: Target) -> list[Command]:
    found = [] if target.rehearsal else [_tests(target, "on the device", ON_THE_DEVICE)]
    return found + in_forms(target, REHEARSED if target.rehearsal else FILES)


def in_forms(target: Target, files: tuple[str, ...], forms: tuple[str, ...] = FORMS) -> list[Command]:
    """A part for each form and file."""
    return [in_form(target, form, file) for form in forms for file in files]


def in_form(target: Target, form: str, file: str, of: str = "") -> Command:
    """The tests of a file in one form; `of`: only those whose next parameter begins with this."""
    backend = "triton" if form == "triton" else "native"
    options = TWO_LAUNCHES if form == "two launches" else ()
    environ = INTERPRETED if form == "triton" and target.rehearsal else {}
    part = f"{form}: {Path(file).stem.removeprefix('test_')}" + (f" of {of}" if of else "")
    chosen = ("-k", f"{backend}-{target.device}" + (f"-{of}" if of else ""))
    return _tests(target, part, (file,), (*chosen, *options), environ)


def _tests(
    target: Target,
    part: str,
    files: tuple[str, ...],
    options: tuple[str, ...] = (),
    environ: dict[str, str] | None = None,
) -> Command:
    report = target.file(f"{part.replace(': ', '-').replace(' ', '-')}.xml")
    # The project's own options ask for plugins that may not be there.
    fixed = ("-q", "-o", "addopts=", "-m", "not slow", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}")
    argv = (sys.executable, "-m", "pytest", *fixed, *options, *files)
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
