"""Two runs side by side: the step, the layer and the distance at which they part."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from matplotlib.text import Text

import gradops
from gradops.__main__ import main


def run(steps=30, lr=1e-2, spoil=None, first=0, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = gradops.AdamW(model.named_parameters(), lr=lr, **options)
    with gradops.Recorder(optimizer, model) as recorder:
        for step in range(first, first + steps):
            inputs, targets = torch.randn(8, 6), torch.randn(8, 2)
            if spoil is not None and step == 12:
                inputs, targets = spoil(model, inputs, targets)
            loss = F.mse_loss(model(inputs), targets)
            optimizer.zero_grad()
            optimizer.backward(loss)
            optimizer.step()
    return recorder.run()


def other_inputs(model, inputs, targets):
    return inputs * 50, targets


def other_targets(model, inputs, targets):
    return inputs, targets * 50


def another_weight(model, inputs, targets):
    with torch.no_grad():
        model[2].weight.mul_(2)
    return inputs, targets


@pytest.mark.parametrize(
    ("other", "step", "what", "layer"),
    [
        ({"spoil": other_inputs}, 12, "outputs", "0"),
        ({"spoil": another_weight}, 12, "outputs", "2"),
        ({"spoil": other_targets}, 12, "loss", None),
        ({"lr": 0.1}, 0, "rate", None),
        ({"max_norm": 1e-3, "eps": 1.0}, 0, "weights", "0.weight"),
    ],
)
def test_first_difference_is_named_with_step_and_layer(other, step, what, layer):
    same = {"eps": 1.0} if "eps" in other else {}
    compared = run(**same).compare(run(**other))
    assert (compared.parts.step, compared.parts.what, compared.parts.layer) == (step, what, layer)
    assert str(step) in str(compared)


def test_runs_that_are_the_same_never_part():
    compared = run().compare(run())
    assert compared.parts is None
    assert compared.apart is None
    assert "never part" in str(compared)


def test_distance_is_of_the_larger_value_and_settings_that_differ_are_listed():
    compared = run().compare(run(max_norm=0.5))
    assert compared.settings["max_norm"] == (None, 0.5)
    assert "max_norm None and 0.5" in str(compared)
    spoilt = run().compare(run(spoil=other_inputs))
    one, other = spoilt.parts.values
    assert spoilt.parts.difference == pytest.approx(1 - one / other)


def test_rounding_is_a_difference_and_no_parting():
    first = run()
    noisy = dataclasses.replace(first, norms=first.norms.copy(), loss=first.loss.copy())
    noisy.norms[3, 1] *= 1 + 1e-6
    noisy.loss[20] *= 3
    compared = first.compare(noisy)
    assert (compared.parts.step, compared.parts.layer) == (3, "0.bias")
    assert (compared.apart.step, compared.apart.what) == (20, "loss")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_differs_from_one_that_is(value):
    first = run()
    broken = dataclasses.replace(first, loss=first.loss.copy())
    broken.loss[7] = value
    compared = first.compare(broken)
    assert compared.apart.step == 7
    assert compared.apart.difference == np.inf
    assert broken.compare(broken).parts is None


def test_only_common_steps_are_compared():
    assert len(run(steps=10).compare(run()).steps) == 10
    late = run(steps=5)
    with pytest.raises(ValueError, match="no step in common"):
        run(steps=5).compare(dataclasses.replace(late, steps=late.steps + 100))


def test_picture_has_both_curves_and_the_step(tmp_path):
    compared = run().compare(run(spoil=other_inputs))
    figure = compared.plot(tmp_path / "both.svg")
    assert "<svg" in (tmp_path / "both.svg").read_text()
    said = " ".join(text.get_text() for text in figure.findobj(Text))
    assert "part at step 12" in said
    for axes, values in zip(figure.axes, ("loss", "grad_norm"), strict=True):
        curves = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) > 2]
        for curve, recorded in zip(curves, compared.runs, strict=True):
            np.testing.assert_allclose(curve, getattr(recorded, values))
        assert [line.get_xdata()[0] for line in axes.lines if len(line.get_ydata()) == 2] == [12]


def test_command_compares_two_files(tmp_path, capsys):
    paths = [str(tmp_path / name) for name in ("a.npz", "b.npz")]
    run().save(paths[0])
    run(spoil=other_inputs).save(paths[1])
    assert main(["report", *paths, "--plot", str(tmp_path / "both.png")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert "a.npz and b.npz: 30 steps in both" in printed
    assert "They part at step 12" in printed
    with pytest.raises(SystemExit, match="compares two runs, got 3"):
        main(["report", *paths, paths[0]])
    with pytest.raises(SystemExit, match="--html shows one run"):
        main(["report", *paths, "--html", "x.html"])
    with pytest.raises(SystemExit, match="there is no file"):
        main(["report", paths[0], str(tmp_path / "missing.npz")])
