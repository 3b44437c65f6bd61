"""What docs/scale.md computes is what was measured, and what the code does."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import scale_tables, tables
from gradops.distributed.gather import Gathering

MESH = json.loads((tables.RESULTS / "mesh.json").read_text())
PAPER = [name for name in scale_tables.FIGURES if name.startswith("paper_")]
VIEWS = {"unbind", "unsqueeze"}


@pytest.mark.parametrize("row", MESH["rows"], ids=lambda row: f"{row['ranks']}x{row['tensors']}")
def test_computed_payload_and_host_time_are_the_simulated_ones(row):
    assert scale_tables.payload(row["ranks"], row["tensors"]) == (row["collectives"], row["bytes"])
    assert scale_tables.host_time(MESH["rows"], row["ranks"], row["tensors"]) == pytest.approx(row["seconds"])


@pytest.mark.parametrize("name", PAPER)
def test_every_network_and_number_of_ranks_has_its_figure_within_80_columns(name):
    header, _, *body = scale_tables.FIGURES[name]({"mesh": MESH}).splitlines()
    assert len(body) == len(scale_tables.NETWORKS)
    for line in (header, *body):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 2 + len(scale_tables.RANKS)
        assert all(cells)
        assert len(line) <= 80


class _Launches(TorchDispatchMode):
    """Counts the operators that launch something on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def test_two_reductions_launch_as_many_small_kernels_as_the_page_says(monkeypatch):
    numbers, weights = (torch.ones(shape, dtype=torch.float64) for shape in ((scale_tables.LINES, 5), (5,)))
    monkeypatch.setattr(Gathering, "__init__", lambda self: None)
    monkeypatch.setattr(Gathering, "_all_reduced", lambda self, numbers, operation, kinds: numbers)
    monkeypatch.setattr(Gathering, "_weights", lambda self, device: weights)
    with _Launches() as launches:
        Gathering()._reduced(numbers, "nms", 2.0)
    assert launches.count == scale_tables.REDUCING
