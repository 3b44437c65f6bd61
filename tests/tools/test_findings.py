"""What the report says of trainings that stand out by one thing: levels, clips, losses, spoilt statistics, samples."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("mlxtend")
pytest.importorskip("rich")

from trainings import recorded

import gradops
import gradops.diagnose
from gradops.record.run import Run

NAN = float("nan")
LEVELS = ("failure", "warning", "note")


def network(normalise=True):
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(4)] if normalise else []
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))


def regression(outputs, targets):
    return F.mse_loss(outputs[:, 0], targets)


def record(model, steps=40, lr=1e-3, batch=lambda step, x, y: (x, y), loss_fn=regression, clip=None, **options):
    torch.manual_seed(0)
    watched = options.pop("watched", model)
    optimizer = gradops.AdamW(model.named_parameters(), lr=lr, **options)
    with gradops.Recorder(optimizer, watched) as recorder:
        for step in range(steps):
            x = torch.randn(16, 1, 8, 8)
            inputs, targets = batch(step, x, x.mean((1, 2, 3)) + 1)
            loss = loss_fn(model(inputs), targets)
            optimizer.zero_grad()
            recorder.loss(loss, batch=torch.arange(16) + 100 * step)
            optimizer.backward(loss)
            if clip is not None:
                clip(optimizer)
            optimizer.step()
    return recorder


def report_of(*args, **options):
    found = record(*args, **options).report()
    return found, " ".join(str(found).split())


def levels(found):
    return {finding.kind: finding.level for finding in found.findings}


def test_headline_counts_the_findings_of_each_level():
    found = recorded("high lr, residual")
    said = gradops.diagnose.report(found)
    counts = [[finding.level for finding in said.findings].count(level) for level in LEVELS]
    assert min(counts) > 0
    words = [f"{count} {level}{'' if count == 1 else 's'}" for count, level in zip(counts, LEVELS, strict=True)]
    assert said.verdict.endswith(f"({', '.join(words)})")
    assert str(said).count("- failure: ") == counts[0]


@pytest.mark.parametrize(("steps", "lr"), [(15, 0.3), (40, 1.0)])
def test_loss_that_went_through_the_roof_is_not_nothing(steps, lr):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    found, text = report_of(model, steps=steps, lr=lr)
    assert found.cause == "high lr", text
    assert "the loss left, from" in text


def test_loss_that_rose_within_a_few_steps_is_said():
    run = recorded("cnn")
    rows = {
        field.name: getattr(run, field.name)[:12]
        for field in dataclasses.fields(run)
        if field.name not in ("names", "sizes", "groups", "layers", "histogram_edges", "about", "modules", "running")
    }
    short = dataclasses.replace(run, **{**rows, "loss": np.linspace(2.5, 28.6, 12, dtype=np.float32)})
    found = gradops.diagnose.report(short)
    assert levels(found)["worse loss"] == "failure"
    assert found.cause is not None


@pytest.mark.parametrize("steps", [1, 19])
def test_few_steps_are_too_little_to_judge(steps):
    found, _ = report_of(network(), steps=steps)
    assert found.verdict == f"Too little for a diagnosis: {steps} step{'s' if steps > 1 else ''}."


def test_one_step_without_a_loss_is_too_little_to_judge():
    param = nn.Parameter(torch.ones(3))
    optimizer = gradops.AdamW([("weight", param)])
    with gradops.Recorder(optimizer) as recorder:
        param.grad = torch.ones(3)
        optimizer.step()
    assert recorder.report().verdict == "Too little for a diagnosis: 1 step, and no loss was recorded."


def test_run_without_losses_says_so():
    run = recorded("cnn")
    bare = dataclasses.replace(run, loss=np.full_like(run.loss, np.nan), has_loss=np.zeros_like(run.has_loss))
    assert "no loss was recorded" in gradops.diagnose.report(bare).verdict


def clipped(optimizer):
    torch.nn.utils.clip_grad_norm_([param for group in optimizer.param_groups for param in group["params"]], 0.1)


@pytest.mark.parametrize("scale", [65536.0, gradops.DynamicLossScale(growth_interval=10)])
def test_clipping_of_scaled_gradients_is_said(scale):
    found, text = report_of(network(), clip=clipped, loss_scale=scale)
    assert found.cause == "scaled clipping"
    assert "had a norm of 0.1 before they were unscaled" in text
    assert "give wrap max_norm" in text


@pytest.mark.parametrize("scale", [None, 65536.0])
def test_clipping_of_unscaled_gradients_is_a_note(scale):
    def unscaled(optimizer):
        optimizer.unscale_()
        clipped(optimizer)

    found, text = report_of(network(), clip=unscaled, loss_scale=scale)
    assert levels(found) == {"clipped before": "note"}, text
    assert "came with a norm of 0.1" in text


@pytest.mark.parametrize("scale", [None, 65536.0, "dynamic"])
def test_own_clipping_is_not_taken_for_somebody_elses(scale):
    found, _ = report_of(network(), max_norm=0.05, loss_scale=scale)
    assert set(levels(found)) == {"clipping binds"}


def nan_batch(step, x, y):
    return (x * NAN, y) if step == 30 else (x, y)


def test_nan_batch_says_what_is_safe_what_is_not_and_which_samples_it_had():
    recorder = record(network(), batch=nan_batch)
    found = recorder.report()
    text = " ".join(str(found).split())
    assert found.cause == "corrupt batch"
    assert levels(found)["spoilt statistics"] == "failure"
    assert "The step was skipped: the weights and the optimizer's moments are as they were" in text
    assert "running_mean and running_var of `1` (BatchNorm2d) are not" in text
    assert "protect=model" in text
    assert text.count("Its samples: 3000, 3001,") == 1
    assert recorder.run().batch(30) == list(range(3000, 3016))


def test_protected_statistics_and_networks_without_any_are_not_called_spoilt():
    model = network()
    found = record(model, batch=nan_batch, protect=model).report()
    assert torch.isfinite(model[1].running_mean).all()
    assert "spoilt statistics" not in levels(found)
    assert "by protect the model's running statistics" in " ".join(str(found).split())
    assert "spoilt statistics" not in levels(record(network(normalise=False), batch=nan_batch).report())


def test_statistics_that_protect_was_not_given_are_named():
    model = network()
    model.insert(2, nn.BatchNorm2d(4))
    found = record(model, batch=nan_batch, protect=model[1]).report()
    text = " ".join(str(found).split())
    assert torch.isfinite(model[1].running_mean).all()
    assert not torch.isfinite(model[2].running_mean).any()
    assert "running_mean and running_var of `2` (BatchNorm2d) are not" in text


def nothing(outputs, targets):
    return regression(outputs, targets) * NAN


def test_loss_that_alone_is_no_number_from_the_first_step_on_is_the_losss_fault():
    found, text = report_of(network(), loss_fn=nothing)
    assert found.cause == "bad loss"
    assert [cause.name for cause in found.causes] == ["bad loss"]
    assert "your" not in text
    assert "the outputs of all 4 watched layers are finite: the loss function or the targets make it" in text
    assert "learning rate" not in " ".join(remedy.advice for remedy in found.remedies)


def test_without_outputs_it_is_still_not_the_learning_rate():
    found, text = report_of(network(), loss_fn=nothing, watched=None)
    assert found.cause == "bad loss"
    assert "no learning rate makes it" in text
    assert all(remedy.anchor != "lower-the-peak-learning-rate" for remedy in found.remedies)


def test_bad_targets_of_one_batch_are_named_with_its_samples():
    found, text = report_of(network(), batch=lambda step, x, y: (x, y * NAN if step == 20 else y))
    assert found.cause == "bad loss"
    assert "Step 20: the loss was inf or NaN, though the outputs of all 4 watched layers are finite" in text
    assert "Its samples: 2000, 2001," in text


def test_first_forward_pass_that_is_not_finite_is_not_the_learning_rates_fault():
    model = network(normalise=False)
    with torch.no_grad():
        model[3].weight.fill_(3e38)
    found, text = report_of(model, steps=25)
    assert found.cause == "bad start", text
    assert "Inf or NaN in layer `3` (Linear) at the first step" in found.verdict


def test_layers_are_named_with_their_type_also_from_the_file(tmp_path):
    run = recorded("dead layer")
    run.save(tmp_path / "run.npz")
    loaded = Run.load(tmp_path / "run.npz")
    assert loaded.modules["2"] == "Conv2d"
    assert str(gradops.diagnose.report(loaded)) == str(gradops.diagnose.report(run))
    unnamed = dataclasses.replace(run, modules={})
    assert "Layer `2` is dead" in str(gradops.diagnose.report(unnamed))


def test_numbers_have_three_digits():
    from gradops.diagnose.finding import number

    assert [number(value) for value in (3.06e18, 0.457, 0.0001234, 12.34, 0.0)] == [
        "3.06e+18",
        "0.457",
        "0.000123",
        "12.3",
        "0",
    ]
