"""NaN and inf in every column of a record, at every place: the diagnosis takes none of them for a calm number."""

import dataclasses
import re
import warnings

import numpy as np
import pytest

pytest.importorskip("mlxtend")
pytest.importorskip("rich")

from trainings import recorded

from gradops.diagnose import report
from gradops.diagnose.history import departures
from gradops.diagnose.losses import came_back
from gradops.diagnose.view import View

STEPS = 90
PLACES = {
    "first": slice(0, 1),
    "first five": slice(0, 5),
    "one": slice(45, 46),
    "every other": slice(20, None, 2),
    "from the middle on": slice(45, None),
    "last": slice(-1, None),
    "everywhere": slice(None),
}
COLUMNS = ("loss", "grad_norm", "clip_coef", "loss_scale", "lr", "norms", "abs_max", "update_ratio", "param_rms")
OUTPUTS = tuple(f"activation_{name}" for name in ("mean", "std", "abs_max", "near_zero", "negative"))


def with_values(run, **columns):
    return dataclasses.replace(run, **columns)


def spoilt(run, column, place, value):
    values = getattr(run, column).copy()
    values[PLACES[place]] = value
    return with_values(run, **{column: values})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", COLUMNS + OUTPUTS)
@pytest.mark.parametrize("name", ["cnn", "high lr, residual", "corrupt batch, labels"])
def test_no_sentence_counts_with_a_number_that_is_none(name, column, value):
    for place in PLACES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = report(spoilt(recorded(name), column, place, value))
        words = str(found).replace("inf or NaN", "").replace("inf, NaN", "")
        assert not re.search(r"\b(nan|inf)\b", words), (place, words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", ["from the middle on", "last", "everywhere", "every other"])
def test_a_loss_that_is_no_number_in_the_end_is_no_healthy_run(place, value):
    found = report(spoilt(recorded("cnn"), "loss", place, value))
    assert found.findings
    assert "Nothing wrong" not in found.verdict
    assert "single" not in found.verdict


def losses(*parts):
    return np.array([value for value, count in parts for _ in range(count)], dtype=np.float32)


# What the loss did after a spike of 50 at step 20, and whether that was a single bad batch.
AFTER_SPIKE = [
    (losses((0.2, 40)), True),
    (losses((np.nan, 40)), False),
    (losses((np.inf, 40)), False),
    (losses((-np.inf, 40)), False),
    (losses((0.2, 12), (np.nan, 28)), False),
    (losses((np.nan, 2), (0.2, 38)), True),
    (losses((0.2, 36), (np.nan, 4)), False),
    (losses((0.2, 38), (np.nan, 1), (0.2, 1)), True),
    (losses((0.9, 40)), False),
    (losses((1.0, 20), (0.2, 20)), False),
    (losses(), False),
]


def with_losses(after, norms=None):
    loss = np.concatenate([losses((1.0, 5), (0.2, 15), (50.0, 1)), after])
    run = recorded("cnn, BatchNorm")
    rows = {
        field.name: getattr(run, field.name)[: len(loss)]
        for field in dataclasses.fields(run)
        if field.name not in ("names", "sizes", "groups", "layers", "histogram_edges", "about", "modules", "running")
    }
    # Of outputs nothing is known, so that a loss that is no number is not the targets' fault.
    unknown = {name: np.full_like(rows[name], np.nan) for name in OUTPUTS}
    return with_values(run, **{**rows, **unknown, "loss": loss})


@pytest.mark.parametrize(("after", "single"), AFTER_SPIKE)
def test_a_single_bad_batch_is_one_after_which_the_loss_came_back(after, single):
    found = report(with_losses(after))
    assert ("single bad batch" in found.verdict) == single, str(found)
    assert any(finding.kind == "odd loss" for finding in found.findings) == single


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_norm_that_never_came_back_was_no_single_spike(value):
    run, place = recorded("cnn, BatchNorm"), 60
    norms, skipped = run.grad_norm.copy(), run.skipped.copy()
    norms[place] *= 100
    run = with_values(run, grad_norm=norms.copy(), loss=np.full_like(run.loss, 0.5))
    assert "single bad batch" in report(run).verdict
    norms[place + 12 :] = value
    skipped[place + 12 :] = True
    died = with_values(run, grad_norm=norms.copy(), skipped=skipped)
    assert not came_back(View(died), place)
    assert "single" not in report(died).verdict
    assert all(finding.kind != "single spike" for finding in report(died).findings)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_dies_after_a_spike_is_not_taken_for_learning(value):
    run = recorded("high lr, residual")
    event = View(run).leaves[0].row
    loss = run.loss.copy()
    loss[event + 1] = 1e-3  # of which alone the median would be
    loss[event + 2 :] = value
    assert any(finding.kind == "explosion" for finding in report(with_values(run, loss=loss)).findings)


def test_a_frozen_parameter_that_was_never_measured_does_not_hide_a_corrupt_batch():
    run = recorded("corrupt batch, NaN")
    rms = run.param_rms.copy()
    rms[:, -1] = np.nan
    assert report(with_values(run, param_rms=rms)).cause == "corrupt batch"


def test_fading_is_not_told_from_steps_that_were_skipped():
    run = recorded("bad init, fading")
    norms, skipped = run.norms.copy(), run.skipped.copy()
    norms[:3], skipped[:3] = np.inf, True
    found = report(with_values(run, norms=norms, skipped=skipped))
    assert any(finding.kind == "small init" for finding in found.findings)
    healthy = recorded("cnn")
    norms = healthy.norms.copy()
    norms[:5, -1] = np.inf
    found = report(with_values(healthy, norms=norms, loss=np.full_like(healthy.loss, 2.3)))
    assert not any(finding.kind == "small init" for finding in found.findings)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_what_has_no_logarithm_never_leaves_a_history(value):
    series = np.exp(0.3 * np.random.default_rng(0).standard_normal(120))
    for place in PLACES.values():
        spoiled = series.copy()
        spoiled[place] = value
        assert not departures(spoiled)
