"""The report: it names the cause of real trainings that went wrong, and finds nothing in those that did not."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from trainings import FAULTY, HEALTHY, recorded

import gradops
from gradops import demo
from gradops.__main__ import main
from gradops.demo.network import ResidualNet
from gradops.demo.recipes import GradopsRecipe
from gradops.demo.training import Run, train
from gradops.diagnose import causes, guide, report
from gradops.diagnose.history import departures
from gradops.diagnose.remedies import BY_GRADIENT, REMEDIES
from gradops.optim.classes import classes

SAID = {
    "high lr, residual": (
        "First came the weights",
        "left its own history first",
        "is dead since step",
        "of its own norm",
    ),
    "high lr, clipped": ("Clipping bound in", "max_norm 1"),
    "bad init": ("begins too large", "Kaiming's initialisation gives 1.4"),
    "no normalisation": ("No normalisation was seen",),
    "float16 overflow": ("float16 overflow in layer `3` (Linear)", "The loss scale does not explain it"),
    "corrupt batch": ("at step 60", "while its weights were as before", "First came activations"),
    "corrupt batch, NaN": ("at step 60", "with finite weights"),
    "corrupt batch, labels": ("at step 150", "single-bad-batches"),
    "dead layer": ("Layer `2` (Conv2d) is dead since step 50", "are negative", "Without a gradient, too: `0` (Conv2d)"),
    "dead layer, from the start": ("Layer `4` (Conv2d) is dead from the first recorded step on",),
    "scale at floor": ("sits at its floor", "90 of 90 steps were skipped"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_report_names_the_cause_of_a_training_that_went_wrong(name):
    found = report(recorded(name))
    assert found.cause == name.split(",")[0], str(found)
    text = " ".join(str(found).split())
    for words in SAID.get(name, ()):
        assert words in text
    assert found.remedies


@pytest.mark.parametrize("name", HEALTHY)
def test_report_finds_nothing_wrong_in_a_healthy_training(name):
    found = report(recorded(name))
    assert not found.causes, str(found)
    assert not [finding for finding in found.findings if finding.trouble], str(found)
    assert "Nothing wrong was found" in str(found)


def test_loss_scale_explains_the_skipped_steps_of_its_search():
    text = " ".join(str(report(recorded("float16, scale search"))).split())
    assert "The loss scale explains it" in text


def test_clipping_in_nearly_every_step_is_said_and_is_no_cause():
    found = report(recorded("clipping binds"))
    assert found.cause is None
    assert "max_norm 0.05" in str(found)
    assert REMEDIES["max_norm"] in found.remedies


def test_inputs_that_nobody_normalised_are_noted():
    found = report(recorded("large inputs"))
    assert [finding.kind for finding in found.findings] == ["large inputs"]


def without_activations(run):
    empty = {
        field.name: getattr(run, field.name)[:, :0]
        for field in dataclasses.fields(run)
        if field.name.startswith("activation_")
    }
    return dataclasses.replace(run, layers=[], **empty)


@pytest.mark.parametrize("name", ["high lr, residual", "corrupt batch", "dead layer", "scale at floor"])
def test_cause_is_named_from_the_gradients_alone(name):
    found = report(without_activations(recorded(name)))
    assert found.cause == name.split(",")[0], str(found)


WITHOUT_STEPS = ("names", "sizes", "groups", "layers", "histogram_edges", "about", "modules", "running")


def later(run, first):
    rows = {
        field.name: getattr(run, field.name)[first:]
        for field in dataclasses.fields(run)
        if field.name not in WITHOUT_STEPS
    }
    return dataclasses.replace(run, **rows)


def test_record_that_begins_late_counts_steps_from_the_first_of_the_training():
    found = report(later(recorded("dead layer"), 20))
    assert found.cause == "dead layer"
    assert "since step 50" in str(found)


def test_start_of_a_record_that_begins_late_is_not_taken_for_the_initialisation():
    found = report(later(recorded("bad init"), 5))
    assert found.cause is None, str(found)


def every_fifth(run):
    """What the record is when activations are measured in every fifth step only."""
    left_out = np.arange(len(run.steps)) % 5 != 0
    sampled = {}
    for field in dataclasses.fields(run):
        if field.name.startswith("activation_"):
            values = getattr(run, field.name).copy()
            values[left_out] = np.nan if values.dtype.kind == "f" else 0
            sampled[field.name] = values
    return dataclasses.replace(run, **sampled)


@pytest.mark.parametrize("name", ["corrupt batch", "dead layer", "bad init", "linear"])
def test_activations_may_be_measured_now_and_then(name):
    assert report(every_fifth(recorded(name))).cause == (None if name in HEALTHY else name)


def without_loss(run):
    return dataclasses.replace(run, loss=np.full_like(run.loss, np.nan), has_loss=np.zeros_like(run.has_loss))


def test_run_whose_loss_nobody_recorded_can_be_reported():
    run = recorded("corrupt batch")
    found = report(without_loss(run))
    assert found.cause == "corrupt batch"


def test_run_of_unnamed_layers_without_a_single_finite_value_can_be_reported():
    run = recorded("scale at floor")
    nothing = {
        name: np.full_like(getattr(run, name), np.nan)
        for name in ("grad_norm", "norms", "abs_max", "update_ratio", "param_rms")
    }
    names = [f"param_{index}" for index in range(len(run.names))]
    assert report(dataclasses.replace(without_loss(run), names=names, **nothing)).cause == "scale at floor"


def test_nothing_is_claimed_of_weights_that_were_not_measured():
    run = recorded("bad init")
    unmeasured = {name: np.full_like(run.param_rms, np.nan) for name in ("update_ratio", "param_rms")}
    assert "normalis" not in report(dataclasses.replace(run, **unmeasured)).verdict


@pytest.mark.slow
@pytest.mark.parametrize(("cap", "cause"), [(None, "high lr"), (demo.CAP, None)])
def test_report_tells_the_demos_explosion_from_its_cure(cap, cause):
    task = demo.make_task(0, 320, 0.1, "fp32", train_canvases=2000, held_out_canvases=64)
    torch.manual_seed(task.seed)
    network = ResidualNet()
    recipe = GradopsRecipe(network, task.lr, scaled=False, max_norm=demo.MAX_NORM, max_relative_step=cap)
    with gradops.Recorder(recipe.optimizer, network) as recorder:
        train(task, Run("recorded", units=0), network, recipe, lambda run: None)
    found = report(recorder.run())
    assert found.cause == cause, str(found)


def test_run_without_steps_is_refused():
    with pytest.raises(ValueError, match="no steps"):
        report(later(recorded("linear"), 200))


def test_every_remedy_is_one_of_the_guides_sections():
    assert {remedy.anchor for remedy in REMEDIES.values()} <= set(guide.sections())
    assert all(remedy.anchor == REMEDIES[key].anchor for key, remedy in BY_GRADIENT.items())


def test_advice_follows_from_the_optimizers_rule():
    """Adam's advice would send somebody with SGD to a cap ten times too wide, and away from clipping."""
    for cls in classes().values():
        by_gradient = not cls.rule.scale_free or None
        run = recorded("high lr, residual")
        run = dataclasses.replace(run, about={**run.about, "by_gradient": by_gradient})
        found = {remedy.anchor: remedy for remedy in report(run).remedies}
        assert ("RelativeStepCap(0.01" in found["cap-the-relative-step"].advice) == bool(by_gradient)


def test_recorded_run_says_whether_updates_have_the_gradients_size():
    for cls in classes().values():
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = cls([("weight", param)], lr=1e-3)
        recorder = gradops.Recorder(optimizer)
        param.grad = torch.ones(3)
        optimizer.step()
        assert recorder.run().about["by_gradient"] == (not cls.rule.scale_free or None)


def test_every_cause_and_note_has_remedies_that_exist():
    named = [key for cause in (*causes.CAUSES, causes.UNKNOWN) for key in cause.remedies]
    named += [key for keys in causes.NOTES.values() for key in keys]
    assert set(named) == set(REMEDIES)
    assert all(cause.remedies for cause in causes.CAUSES)


def test_trouble_without_a_known_cause_is_not_called_healthy():
    run = without_activations(recorded("linear"))
    loss = run.loss.copy()
    loss[-30:] = np.nan
    assert report(dataclasses.replace(run, loss=loss)).cause == "unknown"


def test_command_prints_the_report_within_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    recorded("high lr, residual").save(tmp_path / "run.npz")
    assert main(["report", str(tmp_path / "run.npz")]) == 0
    printed = capsys.readouterr().out
    assert "A learning rate too high" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_what_is_no_recorded_run_is_said_in_a_sentence(tmp_path):
    (tmp_path / "text.npz").write_text("something else")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    torch.save({"weight": torch.ones(3)}, tmp_path / "model.pt")
    for name in ("text.npz", "other.npz", "cut.npz", "model.pt", "."):
        with pytest.raises(
            SystemExit, match=r"is no recorded run; pass a file that gradops\.Recorder\(path=\.\.\.\) wrote$"
        ):
            main(["report", str(tmp_path / name)])
    with pytest.raises(
        SystemExit, match=r"there is no file .*missing\.npz; gradops\.Recorder\(path=\.\.\.\) writes one$"
    ):
        main(["report", str(tmp_path / "missing.npz")])


def quiet(steps=120, seed=0):
    return np.exp(0.3 * np.random.default_rng(seed).standard_normal(steps))


def test_departure_is_found_at_its_step_with_its_ratio():
    values = quiet()
    values[70] = 40.0
    (found,) = departures(values)
    assert (found.row, found.value) == (70, 40.0)
    assert found.ratio == pytest.approx(40.0 / np.median(values[20:70]), rel=1e-3)


@pytest.mark.parametrize("seed", range(20))
def test_quiet_series_never_leaves_its_history(seed):
    assert not departures(quiet(seed=seed))


def test_series_that_scatters_by_decades_is_not_held_to_ten_times():
    values = np.exp(1.5 * np.random.default_rng(0).standard_normal(200))
    assert (values > 10 * np.median(values)).any()
    assert not departures(values)


def test_growth_too_slow_for_a_window_is_found():
    values = quiet(steps=400) * np.exp(np.arange(400) / 40)
    found = departures(values)
    assert found
    assert found[0].ratio > 100


def test_values_without_a_logarithm_are_passed_over():
    values = quiet()
    values[30], values[40], values[50:] = 0.0, np.inf, np.nan
    assert not departures(values)
    assert not departures(np.zeros(60))
    assert not departures(np.full(60, np.nan))
    assert not departures([])
