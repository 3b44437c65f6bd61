"""track_updates: how far each step moved every parameter, and what it left, gathered while the update writes."""

import math

import pytest
import torch
from against_oracle import any_sequence, steps_of
from beside import Beside, assert_bitwise, snapshot
from cases import CHUNK, DTYPES, LAYOUTS, ParamCase, param_cases
from hypothesis import given
from hypothesis import strategies as st

import gradops


def stepped(optimizer, *grads):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    return optimizer.stats


@pytest.mark.parametrize("cls", [gradops.Adam, gradops.AdamW])
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_tracked_steps_equals_the_oracle(cls, device, data, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=4))
    settings = {"track_updates": True, "max_relative_step": data.draw(st.sampled_from([None, 0.05]))}
    any_sequence(cls, device, data, cases, settings)


@pytest.mark.parametrize("size", [1, 7, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_of_the_whole_tensor(layout, size, device):
    said = steps_of(ParamCase((size,), layout=layout), device, 2, lr=0.1, track_updates=True)
    assert all(stats.update_ratio[0] > 0.0 for stats in said)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_of_the_stored_half_precision_values(dtype, device):
    steps_of(ParamCase((CHUNK + 3,), dtype, grad_dtype=dtype), device, 3, lr=0.1, track_updates=True)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_moves_whose_squares_leave_float32_are_measured_right(size, device):
    for numel in (5, CHUNK + 5):
        param = torch.zeros(numel, device=device).requires_grad_()
        both = Beside(gradops.AdamW([param], lr=size, weight_decay=0.0, track_updates=True))
        for _ in range(3):
            both.step([torch.randn_like(param)])


def test_moves_of_all_magnitudes_in_one_tensor_are_measured_right(device):
    """The first element of a lane is tiny, a later one huge, and the other way round."""
    for values in (torch.logspace(-25, 25, 2 * CHUNK + 9), torch.logspace(25, -25, 2 * CHUNK + 9)):
        param = values.to(device).requires_grad_()
        both = Beside(gradops.AdamW([param], lr=0.01, weight_decay=1.0, eps=1e3, track_updates=True))
        both.step([torch.zeros_like(param)])


def test_values_of_one_step(device):
    param = torch.tensor([3.0, 4.0], device=device).requires_grad_()
    optimizer = gradops.Adam([param], lr=0.5, track_updates=True)
    stats = stepped(optimizer, torch.ones(2, device=device))
    after = torch.tensor([2.5, 3.5])
    assert stats.update_ratio.item() == pytest.approx(0.5 * 2**0.5 / after.norm().item(), rel=1e-6)
    assert stats.param_rms.item() == pytest.approx(after.square().mean().sqrt().item(), rel=1e-6)


def test_what_was_zero_and_stays_zero_has_not_moved(device):
    optimizer = gradops.AdamW([torch.zeros(4, device=device).requires_grad_()], track_updates=True)
    stats = stepped(optimizer, torch.zeros(4, device=device))
    assert (stats.update_ratio.item(), stats.param_rms.item()) == (0.0, 0.0)


def test_what_was_moved_to_zero_has_moved_infinitely(device):
    optimizer = gradops.AdamW([torch.ones(4, device=device).requires_grad_()], lr=1.0, weight_decay=1.0, eps=1.0)
    optimizer.track_updates = True
    stats = stepped(optimizer, torch.zeros(4, device=device))
    assert (stats.update_ratio.item(), stats.param_rms.item()) == (math.inf, 0.0)


def test_skipped_step_has_no_ratio_and_leaves_the_rms(device):
    params = [torch.ones(4, device=device).requires_grad_() for _ in range(3)]
    optimizer = gradops.AdamW(params, lr=0.1, track_updates=True)
    ones = [torch.ones(4, device=device) for _ in range(2)]
    assert stepped(optimizer, ones[0] * math.inf, ones[1], None).param_rms.isnan().all()
    rms = stepped(optimizer, *ones, None).param_rms.tolist()
    assert rms == pytest.approx([0.8991, 0.8991, 0.0], rel=1e-3)
    stats = stepped(optimizer, ones[0] * math.nan, ones[1], None)
    assert stats.param_rms.tolist() == rms
    assert stats.update_ratio.isnan().tolist() == [True, True, False]
    assert stats.update_ratio[2].item() == 0.0


def test_rows_of_a_parameter_that_takes_no_part_are_zero(device):
    both = Beside(gradops.AdamW([torch.ones(4, device=device).requires_grad_() for _ in range(2)], track_updates=True))
    grad = torch.ones(4, device=device)
    both.step([grad, grad.clone()])
    assert both.step([grad, None]).update_ratio[1] == 0.0


@pytest.mark.parametrize("action", ["skip", "clip"])
def test_spike_has_a_ratio_only_where_the_guard_lets_it_move_something(action, device):
    guard = gradops.SpikeGuard(action, ratio=2.0, warmup_steps=1)
    param = torch.ones(40, device=device).requires_grad_()
    both = Beside(gradops.AdamW([param], guard=guard, track_updates=True), guard=guard)
    for size in (1.0, 1.0, 50.0, 1.0):
        stats = both.step([torch.full((40,), size, device=device)])
        assert math.isnan(stats.update_ratio[0]) == (action == "skip" and size == 50.0)


def test_rows_are_untouched_until_somebody_asks(device):
    optimizer = gradops.AdamW([torch.ones(4, device=device).requires_grad_()])
    grad = torch.ones(4, device=device)
    assert stepped(optimizer, grad).update_ratio.isnan().all()
    optimizer.track_updates = True
    kept = stepped(optimizer, grad).clone()
    assert kept.update_ratio.item() > 0.0
    optimizer.track_updates = False
    assert stepped(optimizer, 10 * grad).update_ratio.tolist() == kept.update_ratio.tolist()


def test_tracking_changes_no_bit_of_the_step(device):
    results = []
    for track in (False, True):
        torch.manual_seed(3)
        cases = [ParamCase((CHUNK + 77,)), ParamCase((40, 30), torch.bfloat16), ParamCase((3,), layout="misaligned")]
        params = [case.param(device) for case in cases]
        optimizer = gradops.AdamW(params, lr=0.1, max_norm=1.0, max_relative_step=0.05, track_updates=track)
        for _ in range(3):
            stepped(optimizer, *(case.grad(device=device) for case in cases))
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


def test_rows_have_the_same_bits_wherever_the_tensors_lie(device):
    """In vectors and element by element, sums are taken in one order."""
    rows = []
    for layout in ("contiguous", "misaligned", "strided"):
        torch.manual_seed(4)
        case = ParamCase((2 * CHUNK + 5,), layout=layout)
        optimizer = gradops.AdamW([case.param(device)], lr=0.1, track_updates=True)
        stats = stepped(optimizer, case.grad(device=device))
        rows.append((stats.update_ratio.item(), stats.param_rms.item()))
    assert rows[0] == rows[1] == rows[2]


def test_cap_that_is_set_after_a_skipped_tracked_step_knows_the_weights(device):
    param = torch.randn(CHUNK + 7, device=device).requires_grad_()
    both = Beside(gradops.AdamW([param], lr=10.0, track_updates=True))
    both.step([torch.full_like(param, math.nan)])
    both.optimizer.max_relative_step = both.oracle.max_relative_step = gradops.RelativeStepCap(0.05)
    assert both.step([torch.randn_like(param)]).capped == [True]
