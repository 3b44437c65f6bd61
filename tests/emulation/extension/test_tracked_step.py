"""Tracked updates on the emulated kernels: ratios and RMS of every dtype, layout, size and launch form."""

import math

import pytest
import torch
from beside import Beside
from cases import DTYPES, ParamCase
from watched import PIECE, Watched

import gradops

FORMS = {"one launch": {"one_launch": True, "shared_slots": 1}, "two launches": {"one_launch": False}}


@pytest.fixture(params=FORMS)
def tracked(request):
    """Makes optimizers that track, on three blocks, beside the oracle."""

    def make(params, guard=None, **options):
        optimizer = gradops.AdamW(params, track_updates=True, guard=guard, **options)
        Watched(optimizer, blocks=3, seed=7, **FORMS[request.param])
        return Beside(optimizer, track_updates=True, guard=guard)

    return make


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE + 9, 17 * PIECE + 5])
@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_of_all_the_stored_values(tracked, dtype, layout, size):
    case = ParamCase((size,), dtype, layout, grad_dtype=dtype)
    both = tracked([case.param()], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        assert both.step([case.grad()]).update_ratio[0] > 0.0


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_moves_whose_squares_leave_float32_are_measured_right(tracked, size):
    param = torch.zeros(2 * PIECE + 5).requires_grad_()
    both = tracked([param], lr=size, weight_decay=0.0)
    for _ in range(2):
        both.step([torch.randn_like(param)])


def test_moves_and_weights_of_far_apart_sizes_in_one_tensor(tracked):
    param = torch.logspace(-25, 25, 5 * PIECE + 9).requires_grad_()
    tracked([param], lr=0.01, weight_decay=1.0, eps=1e3).step([torch.zeros_like(param)])


@pytest.mark.parametrize("action", ["skip", "clip"])
def test_rows_of_skipped_steps_and_of_absent_gradients(tracked, action):
    guard = gradops.SpikeGuard(action, ratio=2.0, warmup_steps=1)
    both = tracked([torch.ones(600).requires_grad_() for _ in range(2)], guard)
    for first, second in [(1.0, 1.0), (1.0, None), (50.0, None), (math.nan, 1.0), (None, 1.0), (1.0, 1.0)]:
        both.step([None if size is None else torch.full((600,), size) for size in (first, second)])
