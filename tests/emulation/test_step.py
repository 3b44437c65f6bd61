"""The emulated CUDA step against the oracle: every dtype, layout, option, size and schedule."""

import pytest
import torch
from beside import Beside
from cases import ParamCase, draw_grad, group_options, param_cases, sequences, settings_of_the_step
from hypothesis import given
from hypothesis import strategies as st
from one_pass import EmulatedPlan, library

import gradops

CLASSES = [gradops.Adam, gradops.AdamW]


@pytest.fixture(scope="module")
def lib():
    return library()


def forms():
    """Grids, launch forms and how much is parked; a seed for each schedule."""
    return st.fixed_dictionaries(
        {
            "blocks": st.integers(1, 4),
            "one_launch": st.booleans(),
            "shared_slots": st.integers(0, 2),
            "inline_params": st.booleans(),
            "seed": st.integers(0, 2**32),
        }
    )


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data(), form=forms(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(cls, lib, data, form, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=5))
    settings = data.draw(settings_of_the_step())
    cut = data.draw(st.integers(1, len(cases)))
    params = [case.param() for case in cases]
    groups = [{"params": part, **data.draw(group_options())} for part in (params[:cut], params[cut:]) if part]
    optimizer = cls(groups, **settings)
    EmulatedPlan(lib, optimizer, **form)
    both = Beside(optimizer, **settings)
    for events in data.draw(sequences(len(cases), max_steps=3)):
        both.step([draw_grad(case, event, both.oracle.scale) for case, event in zip(cases, events, strict=True)])
