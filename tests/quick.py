"""Which of a test's cases belong to every run."""

import pytest


def slow_but(quick, cases):
    """The cases as parameters of a test, each named by itself; those that are not quick are slow."""
    assert set(quick) <= set(cases)
    return [pytest.param(case, id=str(case), marks=[] if case in quick else [pytest.mark.slow]) for case in cases]
