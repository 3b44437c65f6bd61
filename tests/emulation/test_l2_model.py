"""The L2 model: its replay against the closed form, against whole lines, and against cases that can be done by hand."""

from pathlib import Path

import l2_model
import pytest
from l2_model import Cache, Walk, closed_form, dram_bytes

MIB = 1 << 20
WALKS = [Walk(reverse, evict_first) for reverse in [False, True] for evict_first in [False, True]]
DOCS = Path(__file__).parents[2] / "docs"


def test_least_recently_used_leaves_first():
    cache = Cache(2)
    for key in ["a", "b", "a", "c", "a", "b"]:
        cache.touch(key, 1)
    assert cache.dram_bytes == 4  # a, b, c, and b again, which c had pushed out


def test_a_dirty_entry_is_written_back_once():
    cache = Cache(1)
    cache.touch("a", 1, dirty=True)
    cache.touch("b", 1)
    cache.flush()
    assert cache.dram_bytes == 3


def test_evict_first_leaves_before_what_is_older():
    cache = Cache(2)
    cache.touch("a", 1)
    cache.touch("stream", 1, evict_first=True)
    cache.touch("b", 1)
    cache.touch("a", 1)
    assert cache.dram_bytes == 3


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("total", [1, 3, 5, 9, 20])
def test_replay_agrees_with_the_closed_form(walk, total):
    capacity, blocks, row = 8 * MIB, 4, 4096
    replayed = dram_bytes([total * MIB // 4], capacity, walk, blocks, row)
    # Up to a few rows of each block, which the closed form takes to be points.
    assert replayed == pytest.approx(closed_form(total * MIB, capacity, walk), abs=4 * blocks * row)


@pytest.mark.parametrize("walk", WALKS)
def test_rows_stand_for_their_lines(walk):
    tensors, capacity, blocks, row = [1_000, 70_000, 3, 33_333], 200_000, 4, 4096
    in_rows = dram_bytes(tensors, capacity, walk, blocks, row)
    assert dram_bytes(tensors, capacity, walk, blocks, l2_model.LINE) == pytest.approx(in_rows, rel=0.02)


def test_parked_gradients_are_read_once():
    elements, nothing = MIB, 0
    bytes_by_parked = {0: 32 * elements, MIB // 2: 30 * elements, MIB: 28 * elements}
    for parked, expected in bytes_by_parked.items():
        assert dram_bytes([elements], nothing, Walk(reverse=True, parked=parked), blocks=4) == expected


@pytest.mark.parametrize("model", l2_model.MODELS[:1])
def test_page_holds_what_the_model_says(model):
    page = (DOCS / "l2-estimate.md").read_text()
    assert page.startswith(l2_model.head())
    for line in l2_model.table_rows(model):
        assert line in page
