"""Fixtures of the frameworks' tests."""

from functools import partial

import pytest


@pytest.fixture
def learner(tmp_path):
    """Makes fastai Learners."""
    from learners import make_learner

    return partial(make_learner, tmp_path)
