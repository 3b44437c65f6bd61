"""The emulated CUDA step with clip_mode="agc" against the oracle: every dtype, layout, shape of units and schedule."""

import pytest
import torch
from beside import Beside, assert_bitwise, assert_same_bits
from cases import ParamCase, draw_grad, group_options, param_cases, sequences, settings_of_the_step
from hypothesis import given, settings
from hypothesis import strategies as st
from test_step import step_all
from watched import PIECE, Watched, element_bytes

import gradops

AGC = {"clip_mode": "agc", "max_norm": 0.01}


def forms():
    """Grids; a seed for each schedule."""
    choices = {"blocks": st.integers(1, 4), "inline_params": st.booleans(), "seed": st.integers(0, 2**32)}
    return st.fixed_dictionaries({**choices, "one_launch": st.just(False)})


# A fourth of the examples: emulated blocks take seconds.
@settings(max_examples=max(1, settings.default.max_examples // 4))
@given(data=st.data(), form=forms(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(data, form, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=4))
    chosen = {**data.draw(settings_of_the_step()), **AGC}
    groups = [
        {"params": [case.param()], **data.draw(group_options() | st.just({"agc": False}))} for case in cases
    ]  # fmt: skip
    optimizer = gradops.AdamW(groups, **chosen)
    Watched(optimizer, **form)
    both = Beside(optimizer, **chosen)
    for events in data.draw(sequences(len(cases), max_steps=3)):
        both.step([draw_grad(case, event, both.oracle.scale) for case, event in zip(cases, events, strict=True)])


SHAPES = [
    (3, PIECE), (3, PIECE + 1), (2, 3 * PIECE - 2), (PIECE + 3, 1), (PIECE, 3), (40, 16), (70, 9), (2, PIECE // 2),
    (1, 9 * PIECE), (9 * PIECE,), (7,), (1, 1), (5, 0), (33, 31), (11, 2, 3, 3), (1200, 5),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "misaligned"])
def test_units_of_every_size_equal_the_oracle(shape, layout):
    torch.manual_seed(5)
    case = ParamCase(shape, layout=layout, grad_layout=layout)
    optimizer = gradops.AdamW([case.param()], **AGC)
    Watched(optimizer, blocks=2, one_launch=False, seed=3)
    both = Beside(optimizer, **AGC)
    both.step([case.grad()])


def test_filters_in_channels_last_memory_equal_the_oracle():
    cases = [ParamCase((6, 5, 3, 3), layout="channels_last", grad_layout=layout) for layout in ("channels_last", "")]
    optimizer = gradops.AdamW([case.param() for case in cases], **AGC)
    Watched(optimizer, blocks=2, one_launch=False, seed=3)
    both = Beside(optimizer, **AGC)
    both.step([case.grad() for case in cases])


UNITS = [ParamCase((70, 9)), ParamCase((3, PIECE * 7 + 1), torch.bfloat16), ParamCase((PIECE * 3, 2)), ParamCase((9,))]


@pytest.mark.parametrize("event", ["grad", float("nan")])
def test_same_bits_for_every_grid_and_schedule(event):
    settings = {**AGC, "max_relative_step": 0.05, "clip_value": 2.0, "track_updates": True}
    forms = [{"blocks": blocks, "one_launch": False, "seed": seed} for blocks, seed in [(1, 0), (2, 6), (5, 8), (7, 9)]]
    runs = [step_all(UNITS, form, settings, {"amsgrad": True}, ("grad", event, "grad")) for form in forms]
    for left, stats, _ in runs[1:]:
        assert_bitwise(left, runs[0][0])
        for mine, theirs in zip(stats, runs[0][1], strict=True):
            assert_same_bits(mine, theirs)


@pytest.mark.parametrize(("dtype", "bytes_of_element"), [(torch.float32, 36), (torch.bfloat16, 26)])
@pytest.mark.parametrize("tracks", [False, True])
def test_gradients_and_parameters_are_read_twice(dtype, bytes_of_element, tracks):
    numel = PIECE * 48
    case = ParamCase((48, PIECE), dtype, grad_dtype=dtype)
    form = {"blocks": 3, "one_launch": False, "seed": 11}
    _, _, plan = step_all([case], form, {**AGC, "track_updates": tracks}, {})
    assert len(plan.reports) == 3 + tracks
    assert element_bytes(plan.reports) == numel * bytes_of_element
    segments = plan.reports[0].traffic[f"{16 * (48 + 48)} bytes"]
    assert segments.store_bytes == 16 * 48
