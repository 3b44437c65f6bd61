"""The range test's curve: what was measured, what it suggests, and why it looks as it does."""

import dataclasses
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from range_tests import loss_fn, make_loader, make_model
from torch import nn

import gradops
from gradops.range_test.curve import LRCurve, LRStep


def test_rates_grow_exponentially_and_groups_keep_their_ratio():
    model, seen = make_model(), []
    params = list(model.parameters())
    groups = zip(params[:3], (0.1, 0.01, torch.tensor(0.01)), strict=True)
    optimizer = torch.optim.SGD([{"params": [param], "lr": lr} for param, lr in groups])
    optimizer.register_step_pre_hook(lambda *_: seen.append([float(group["lr"]) for group in optimizer.param_groups]))
    curve = gradops.lr_find(model, optimizer, loss_fn, make_loader(), start_lr=1e-4, end_lr=1e-1, num_steps=10)
    np.testing.assert_allclose(curve.lrs, np.geomspace(1e-4, 1e-1, 10))
    np.testing.assert_allclose(seen, np.outer(curve.lrs, [1.0, 0.1, 0.1]), rtol=1e-6)


def test_curve_shows_clipped_capped_and_skipped_steps_and_says_so():
    model = make_model()
    never = gradops.DynamicLossScale(init_scale=2.0**126, max_scale=2.0**126, backoff_factor=0.5)
    optimizer = gradops.AdamW(model.parameters(), max_norm=1e-3, max_relative_step=1e-3, loss_scale=never)
    curve = gradops.lr_find(model, optimizer, lambda *batch: 64 * loss_fn(*batch), make_loader(), num_steps=40)
    skipped = [step.skipped for step in curve.steps]
    assert 0 < sum(skipped) < 40
    assert all(math.isfinite(step.grad_norm) != step.skipped for step in curve.steps)
    assert all(step.clipped != step.skipped for step in curve.steps)
    assert [step.capped for step in curve.steps][-1]
    said = str(curve)
    assert f"{sum(skipped)} steps were skipped for an inf or NaN" in said
    assert f"{40 - sum(skipped)} of 40 steps were clipped to max_norm 0.001" in said
    assert "max_relative_step bound in" in said
    assert "never rose above 4 times its lowest, up to 10" in said


def test_dead_network_that_guesses_is_named_as_what_bounds_the_curve():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    optimizer = gradops.AdamW(model.parameters(), max_norm=1.0)
    curve = gradops.lr_find(model, optimizer, loss_fn, make_loader(), end_lr=100.0, num_steps=200, stop_ratio=math.inf)
    dead = [step for step in curve.steps if step.output_spread == 0]
    assert dead
    assert "the model gave every input the same answer" in str(curve)


def test_test_ends_when_the_loss_leaves():
    model = make_model()
    curve = gradops.lr_find(model, torch.optim.SGD(model.parameters()), loss_fn, make_loader(), end_lr=1e6)
    assert curve.diverged
    assert len(curve.steps) < 100
    assert "The test ended at" in str(curve)
    nan = gradops.lr_find(
        model, torch.optim.SGD(model.parameters()), lambda outputs, _: outputs.sum() * math.nan, make_loader()
    )
    assert len(nan.steps) == 1
    assert "The loss is nan" in str(nan)


def made_curve(losses, **options):
    curve = LRCurve(max_norm=None, stop_ratio=4.0, optimizer="SGD")
    for i, loss in enumerate(losses):
        curve.append(LRStep(10 ** (-6 + 7 * i / 99), loss, 1.0, 1.0, clipped=False, capped=False, skipped=False))
    return curve


def test_one_bad_batch_moves_neither_curve_nor_suggestion():
    losses = [1.0] * 40 + [1 - 0.02 * i for i in range(1, 26)] + [0.5] * 35
    smooth = made_curve(losses)
    for place, loss in ((30, 40.0), (30, 0.01), (80, 40.0)):
        disturbed = made_curve([*losses[:place], loss, *losses[place + 1 :]])
        np.testing.assert_allclose(disturbed.smoothed, smooth.smoothed, atol=0.01)
        assert disturbed.suggestion == smooth.suggestion


def test_suggestion_is_where_nine_tenths_of_the_fall_are_made():
    assert made_curve([1.0] * 40 + [1 - 0.02 * i for i in range(1, 26)] + [0.5] * 20).suggestion == pytest.approx(
        10 ** (-6 + 7 * 62 / 99)
    )
    assert made_curve([1.0] * 100).suggestion is None
    assert made_curve([1.0 + 0.01 * i for i in range(100)]).suggestion is None
    assert "never fell" in str(made_curve([1.0] * 100))


@pytest.mark.parametrize("outer", [False, True])
def test_autocast_computes_with_the_weights_as_they_are_now(outer):
    model, dtypes, outputs = nn.Linear(5, 1), [], []

    def watched(output, targets):
        dtypes.append(output.dtype)
        outputs.append(output.detach().float().mean())
        return loss_fn(output.flatten(), targets)

    batch = (torch.ones(4, 5), torch.ones(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        dtype = None if outer else torch.bfloat16
        gradops.lr_find(
            model, optimizer, watched, [batch], start_lr=1.0, end_lr=10.0, num_steps=10, autocast_dtype=dtype
        )
    assert set(dtypes) == {torch.bfloat16}
    assert outputs[-1] > outputs[0] + 1


class NoRate(torch.optim.Optimizer):
    def step(self, closure=None):
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start_lr": 0.0}, ValueError, "start_lr and end_lr"),
        ({"end_lr": 1e-9}, ValueError, "start_lr and end_lr"),
        ({"num_steps": 9}, ValueError, "num_steps must be at least 10"),
        ({"stop_ratio": 1.0}, ValueError, "stop_ratio must be above 1"),
        ({"loader": []}, ValueError, "the loader is empty"),
        ({"loader": iter([1])}, TypeError, "could not be put back"),
        ({"optimizer": "adam"}, TypeError, "must be a torch.optim.Optimizer, got str; pass one$"),
        ({"optimizer": torch.optim.SGD}, TypeError, "got the class SGD; pass an instance$"),
        ({"optimizer": SimpleNamespace(opt=None)}, TypeError, r"got SimpleNamespace; pass its \.opt$"),
        (
            {"optimizer": torch.optim.LBFGS([torch.nn.Parameter(torch.ones(2))])},
            TypeError,
            "LBFGS's step needs a closure",
        ),
        ({"optimizer": NoRate([torch.ones(2)], {})}, TypeError, r"NoRate has no learning rate \(lr\) in its groups"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    model = make_model()
    given = {"optimizer": torch.optim.SGD(model.parameters()), "loader": make_loader(), **arguments}
    with pytest.raises(error, match=message):
        gradops.lr_find(model, given.pop("optimizer"), loss_fn, given.pop("loader"), **given)


def test_picture_is_written_and_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    curve = made_curve([1.0] * 50 + [0.5] * 30 + [2.0, math.inf])
    figure = curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert any("suggested" in text.get_text() for text in figure.axes[0].texts)
    monkeypatch.delitem(sys.modules, "gradops.range_test.picture")
    monkeypatch.delattr("gradops.range_test.picture")
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ModuleNotFoundError, match=r"gradops\[report\]"):
        curve.plot()


def test_the_label_of_max_norm_stands_beside_the_panel_where_no_curve_goes():
    pytest.importorskip("matplotlib")
    curve = made_curve([1.0] * 50 + [0.5] * 50)
    curve.max_norm = 0.3
    figure = curve.plot()
    figure.draw_without_rendering()
    panel = figure.axes[1]
    (label,) = panel.texts
    assert label.get_window_extent().x0 > panel.get_window_extent().x1
    assert label.get_window_extent().x1 < figure.bbox.x1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 30, 60, 99])
def test_a_loss_that_is_no_number_moves_neither_curve_nor_suggestion(value, place):
    losses = [1.0] * 40 + [1 - 0.02 * i for i in range(1, 26)] + [0.5] * 35
    smooth, spoilt = made_curve(losses), made_curve([*losses[:place], value, *losses[place + 1 :]])
    assert spoilt.suggestion == pytest.approx(smooth.suggestion, rel=0.2)
    assert spoilt.diverged == (place == 99)
    assert "never" not in str(spoilt) or "never rose" in str(spoilt)


def test_the_loss_may_leave_after_one_that_was_no_number():
    assert made_curve([1.0] * 50 + [math.nan] + [1.0] * 20 + [50.0] * 20).diverged


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_was_never_a_number_is_not_the_rates_fault_and_has_a_picture(value, tmp_path):
    curve = made_curve([value])
    assert curve.suggestion is None
    assert "No rate does that" in str(curve)
    assert "smaller rate" not in str(curve)
    curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").exists()


def test_outputs_whose_spread_overflows_are_not_called_the_same_answer():
    curve = made_curve([1.0] * 50 + [0.4] * 50)
    curve.steps[:] = [dataclasses.replace(step, output_spread=math.inf) for step in curve.steps]
    assert "same answer" not in str(curve)
