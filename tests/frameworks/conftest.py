"""Fixtures of the frameworks' tests."""

from functools import partial

import pytest


@pytest.fixture
def learner(tmp_path):
    """Makes fastai Learners."""
    from learners import make_learner

    return partial(make_learner, tmp_path)


@pytest.fixture
def fresh_states():
    """Accelerate keeps its state in classes."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def train(tmp_path, fresh_states):
    """Trains with transformers' Trainer, or one made of it."""
    from trainers import run_trainer

    return partial(run_trainer, tmp_path)
