"""Faults planted in the CUDA kernel of activation_stats; each must be seen on the emulator."""

from typing import NamedTuple

import pytest
import torch
from activation_oracle import agrees
from quick import slow_but
from test_activation_kernel import KERNEL, STRIP, library, measured


class Fault(NamedTuple):
    """A replacement in the kernel, and values on which it shows."""

    right: str
    wrong: str
    values: torch.Tensor


FAR = torch.linspace(999.99, 1000.01, 36 * STRIP)
FAULTS = {
    "values behind the end are counted": Fault(
        "    if (lanes.element(i / 4) + i % 4 >= n) continue;\n    const float apart",
        "    const float apart",
        torch.ones(31),
    ),
    "the bound itself is not near zero": Fault(
        "fabsf(x[i]) <= near_zero", "fabsf(x[i]) < near_zero", torch.full((700,), 1e-3)
    ),
    "values are held against 0": Fault(
        "    if (mean == 0.0f) mean = mean_of_piece(x, n, lanes, inv_scale);\n", "", FAR[:STRIP]
    ),
    "a warp's strips are left out": Fault("for (int warp = 1; warp < kWarps", "for (int warp = 2; warp < kWarps", FAR),
}
QUICK = ("values behind the end are counted",)


@pytest.mark.parametrize("name", slow_but(QUICK, FAULTS))
def test_a_planted_fault_is_seen(name, tmp_path):
    fault, text = FAULTS[name], KERNEL.read_text()
    agrees(*measured(library(KERNEL), fault.values), fault.values)
    assert text.count(fault.right) == 1
    source = tmp_path / KERNEL.name
    source.write_text(text.replace(fault.right, fault.wrong))
    with pytest.raises(AssertionError):
        agrees(*measured(library(source), fault.values), fault.values)
