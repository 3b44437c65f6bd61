"""Faults planted in the Triton step; each must be caught by a test that the interpreter runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from quick import slow_but

pytest.importorskip("triton", minversion="3.3")

TESTS = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is what starts the interpreter")


class Fault(NamedTuple):
    """A replacement in a file of gradops/backends, the test that must fail, what it must say, and where it stands."""

    file: str
    right: str
    wrong: str
    test: str
    complaint: str
    where: str = "backends/test_triton_step.py"


UPDATE_TILE, MEASURE = "triton/update_tile.py", "triton/measure.py"
TAILS = "test_tails_strides_and_misalignment_stay_inside_their_tensors"
FAULTS = {
    "an update without its tail mask": Fault(
        UPDATE_TILE,
        "inside = None if VECTORS else at + tl.arange(0, SIZE) < tl.load(row + NUMEL)",
        "inside = None",
        TAILS,
        "out of bounds",
    ),
    "a measurement without its tail mask": Fault(
        MEASURE, "tl.load(pointers, mask=inside, other=0.0)", "tl.load(pointers)", TAILS, "load out of bounds"
    ),
    "a tail taken for a full chunk": Fault(
        "triton/update.py",
        "(tl.load(row + IN_VECTORS) != 0) & (end == begin + CHUNK)",
        "tl.load(row + IN_VECTORS) != 0",
        TAILS,
        "out of bounds",
    ),
    "a decision by the first program of a row": Fault(
        "triton/grad_stats.py",
        'sem="acq_rel") == tl.load(row + CHUNKS) - 1',
        'sem="acq_rel") == 0',
        "test_any_order_of_programs_gives_the_same_bits",
        "AssertionError",
    ),
    "moves merged before the last program of a row": Fault(
        "triton/update_step.py",
        'sem="acq_rel") == tl.load(row + CHUNKS) - 1',
        'sem="acq_rel") == tl.load(row + CHUNKS) - 2',
        "test_any_order_of_programs_gives_the_same_bits",
        "AssertionError",
    ),
    "a gradient read three times": Fault(
        UPDATE_TILE,
        "    param = tl.load(param_at, mask=inside, eviction_policy=HINT)\n",
        "    param = tl.load(param_at, mask=inside, eviction_policy=HINT)\n    tl.load(grad_at, mask=inside)\n",
        "test_a_step_moves_the_promised_bytes_and_small_tables",
        "AssertionError",
    ),
    "an update launched twice": Fault(
        "triton/step.py",
        "        if units:  # the factor of each\n",
        "        _launch_taken(grad_stats_kernel, chunks, arguments)\n        if units:\n",
        "test_a_step_is_two_launches_whatever_the_number_of_tensors",
        "AssertionError",
    ),
    "moves of lanes behind the end": Fault(
        UPDATE_TILE,
        "        moved = tl.where(inside, moved, 0.0)\n",
        "        pass\n",
        "test_rows_are_of_the_whole_tensor and contiguous",
        "update_ratio: 1 of 1 differ",
        "step/test_update_stats.py",
    ),
    "a learning rate that never recovers": Fault(
        "triton/guard.py",
        "tl.load(settings + LR_GROWTH))",
        "1.0)",
        "test_learning_rate_is_cut_after_a_spike_and_recovers",
        "AssertionError",
        "step/test_spike_guard.py",
    ),
    "a unit measured one element too far": Fault(
        "triton/agc.py",
        "inside = index < length\n",
        "inside = index < length + 1\n",
        TAILS,
        "load out of bounds",
    ),
    "the factor of the neighbouring unit": Fault(
        "triton/agc.py",
        "unit = first % count +",
        "unit = (first + 1) % count +",
        "test_each_unit_is_clipped_by_its_own_weights",
        "Mismatched elements",
        "step/test_agc.py",
    ),
}
QUICK = ("an update without its tail mask",)


@pytest.mark.parametrize("name", slow_but(QUICK, FAULTS))
def test_a_planted_fault_is_caught(name, tmp_path):
    fault = FAULTS[name]
    package = tmp_path / "gradops"
    shutil.copytree(TESTS.parent / "gradops", package, symlinks=True)
    source = package / "backends" / fault.file
    text = source.read_text()
    assert text.count(fault.right) == 1
    source.write_text(text.replace(fault.right, fault.wrong))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(TESTS / fault.where)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    # In the copy's folder, which Python searches before any installed gradops.
    done = subprocess.run(
        [*command, "-k", fault.test], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-2000:]
    assert fault.complaint in done.stdout
