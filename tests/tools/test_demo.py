"""The demo: its canvases, its runs in each precision, and what it says about them."""

import argparse
import io
import math

import pytest
import torch
from quick import slow_but

pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from rich.console import Console

from gradops import demo
from gradops.demo import digits, screen
from gradops.demo.explosion import explosion
from gradops.demo.network import Convolution, ResidualNet
from gradops.demo.training import PRECISIONS, Run, Step, batches, guessing_loss
from gradops.demo.verdict import verdict
from gradops.optim.classes import classes

STEPS = 6


def small_task(seed=0):
    return demo.make_task(seed, STEPS, 0.1, train_canvases=192, held_out_canvases=32)


@pytest.fixture
def task():
    return small_task()


def run_of(losses, norms, name="AdamW", skipped=False):
    steps = [Step(loss, norm, 0, skipped, 0.1, 0.01) for loss, norm in zip(losses, norms, strict=True)]
    return Run(name, units=128, steps=steps, accuracy=0.9)


def parse(*arguments):
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return parser.parse_args(arguments)


def quarters_of(canvases):
    return canvases.images.unfold(2, 28, 28).unfold(3, 28, 28).reshape(-1, 28, 28).numpy()


def test_no_held_out_digit_is_in_any_training_canvas():
    train_digits, held_out_digits = digits.load_digits()
    held_out = {image.tobytes() for image in held_out_digits.images}
    seen = {quarter.tobytes() for quarter in quarters_of(digits.compose(train_digits, 500, 0)) if quarter.any()}
    assert seen
    assert not seen & held_out


def test_labels_of_a_canvas_name_exactly_the_digits_on_it():
    train_digits, _ = digits.load_digits()
    classes = {image.tobytes(): int(c) for image, c in zip(train_digits.images, train_digits.classes, strict=True)}
    canvases = digits.compose(train_digits, 50, 3)
    quarters = quarters_of(canvases).reshape(50, 4, 28, 28)
    for on_canvas, labels in zip(quarters, canvases.labels, strict=True):
        present = {classes[quarter.tobytes()] for quarter in on_canvas if quarter.any()}
        assert present == set(labels.nonzero().flatten().tolist())


def test_same_seed_gives_the_same_canvases_and_order():
    first, second = (small_task(5) for _ in range(2))
    assert torch.equal(first.train.images, second.train.images)
    assert all(torch.equal(a, b) for a, b in zip(batches(first), batches(second), strict=True))
    assert not torch.equal(first.train.images, small_task(6).train.images)


def test_an_epoch_shows_every_canvas_once(task):
    epoch = torch.cat(list(batches(task))[:3])
    assert sorted(epoch.tolist()) == list(range(192))


# Convolutions in float16 take minutes on a CPU.
@pytest.mark.parametrize("precision", slow_but(["fp32", "bf16"], PRECISIONS))
def test_demo_prints_a_table_within_80_columns_and_writes_the_picture(precision, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(demo, "TRAIN_CANVASES", 192)
    monkeypatch.setattr(demo, "HELD_OUT_CANVASES", 32)
    picture = tmp_path / "demo.png"
    status = demo.main(parse("--steps", str(STEPS), "--precision", precision, "--output", str(picture)))
    printed = capsys.readouterr().out
    assert status == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert all(name in printed for name in explosion().runs)
    assert all(line in printed for line in explosion().lines.splitlines())
    assert "final loss" in printed
    assert "\x1b" not in printed
    table = [line for line in printed.splitlines() if line.startswith(("|", "+"))]
    assert len(table) > 8
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize("name", slow_but(["AdamW", "SGD", "Lion"], classes()))
def test_demo_of_every_optimizer_trains_it_three_times(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(demo, "TRAIN_CANVASES", 192)
    monkeypatch.setattr(demo, "HELD_OUT_CANVASES", 32)
    trial, picture = explosion(name), tmp_path / "demo.png"
    assert demo.main(parse("--steps", "6", "--optimizer", name.lower(), "--output", str(picture))) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in (f"6 steps of {name}", f"up to {trial.lr:g}", *trial.runs))
    assert all(line in printed for line in trial.lines.splitlines())
    assert ("was not looked for" in printed) == (name not in ("AdamW", "SGD"))
    assert max(map(len, printed.splitlines()[:-1])) <= 80  # the last names the picture
    task = demo.make_task(0, STEPS, trial.lr, train_canvases=64, held_out_canvases=32)
    made = [type(demo.make_recipe(run, ResidualNet(2), task, trial).optimizer) for run in trial.runs]
    assert made == [trial.theirs, trial.theirs, trial.ours]


def test_unknown_optimizer_is_refused_by_those_there_are(capsys):
    assert demo.main(parse("--optimizer", "lomo")) == 2
    assert capsys.readouterr().err.startswith("--optimizer: lomo is none of ")


def test_progress_on_a_terminal_shows_loss_norm_and_skipped_steps(task):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with screen.Screen(console).progress(task) as report:
        report(run_of([0.512], [7.5]))
    shown = console.file.getvalue()
    assert all(text in shown for text in ("AdamW", "0.512", "7.5", "skipped"))


@pytest.mark.parametrize(
    ("output", "sentence"),
    [("missing/demo.png", "--output: there is no directory .*missing"), ("x.foo", "--output .*x.foo: a picture")],
)
def test_picture_that_cannot_be_written_is_said_before_any_training(output, sentence, tmp_path):
    with pytest.raises(SystemExit, match=sentence):
        demo.main(parse("--output", str(tmp_path / output)))


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--lr", "-1"), ("--lr", "much"), ("--precision", "fp8")])
def test_options_out_of_range_are_refused(arguments):
    with pytest.raises(SystemExit):
        parse(*arguments)


def test_emulated_half_convolution_rounds_as_float16_does():
    torch.manual_seed(0)
    layer, x = Convolution(3, 5, 3), torch.randn(2, 3, 8, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x)
    y.float().sum().backward()
    expected = torch.nn.functional.conv2d(x.half().double(), layer.weight.half().double(), layer.bias.half().double())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), expected, rtol=2e-3, atol=2e-3)
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    assert torch.equal(layer.weight.grad, layer.weight.grad.half().float())


@pytest.mark.parametrize("normalise", [False, True])
def test_network_gives_one_logit_per_digit(normalise):
    network = ResidualNet(blocks=2, normalise=normalise)
    assert network(torch.zeros(3, 1, 56, 56)).shape == (3, 10)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules()) == normalise


def test_first_spike_is_the_first_norm_over_ten_times_the_usual_one():
    norms = [0.1] * 30
    assert run_of([0.5] * 30, norms).first_spike is None
    norms[24] = 1.1
    assert run_of([0.5] * 30, norms).first_spike == 25
    norms[22] = math.nan
    assert run_of([0.5] * 30, norms).first_spike == 23
    assert run_of([0.5] * 30, norms, skipped=True).first_spike is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 3, 10])
def test_a_norm_that_is_no_number_is_a_spike_wherever_it_is(value, place):
    norms = [0.1] * 12
    norms[place:] = [value] * (12 - place)
    assert run_of([0.5] * 12, norms).first_spike == place + 1


def test_short_run_has_spikes_too():
    norms = [0.1] * 8 + [1e6] + [0.1] * 11
    assert run_of([0.5] * 20, norms).first_spike == 9
    norms[8] = 2.0  # as sound runs have in their first steps
    assert run_of([0.5] * 20, norms).first_spike is None


def test_table_does_not_say_none_of_a_run_too_short_for_spikes():
    cells = dict(screen.ROWS)
    assert cells["first spike"](run_of([0.5] * 5, [0.1] * 5)) == "too few steps"
    assert cells["first spike"](run_of([0.5] * 30, [0.1] * 30)) == "none"


def test_losses_print_with_three_digits():
    assert dict(screen.ROWS)["final loss"](run_of([3.06e18] * 12, [0.1] * 12)) == "3.06e+18"
    assert "loss 3.06e+18" in verdict([run_of([3.06e18] * 12, [0.1] * 12)], guessing=0.533)


def test_largest_norm_leaves_out_what_is_not_finite():
    assert run_of([0.5] * 3, [1.0, math.inf, 3.0]).largest_norm == 3.0


def test_guessing_loss_is_that_of_the_shares_of_the_labels(task):
    shares = task.train.labels.double().mean(dim=0)
    entropy = -(shares * shares.log() + (1 - shares) * (1 - shares).log()).mean()
    assert guessing_loss(task) == pytest.approx(float(entropy), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "steps", "words"),
    [
        (0.05, 320, "AdamW + clip learned: loss 0.05"),
        (0.05, 60, "AdamW + clip learned: loss 0.05"),
        (0.53, 320, "learned nothing"),
        (0.457, 320, "learned nothing"),
        (0.457, 60, "too few steps for a verdict, loss 0.457"),
        (1e4, 20, "learned nothing"),
        (math.nan, 320, "learned nothing"),
        (math.nan, 20, "learned nothing"),
        (math.inf, 20, "learned nothing"),
    ],
)
def test_verdict_follows_from_the_final_loss_unless_the_run_was_too_short(loss, steps, words):
    said = verdict([run_of([loss] * steps, [0.1] * steps, name="AdamW + clip")], guessing=0.533)
    assert words in said
    assert ("nothing" in said) == ("nothing" in words)
    assert len(said) <= 80


def test_spike_among_the_last_steps_of_a_short_run_is_no_verdict_on_where_its_loss_is():
    losses = [0.7] * 5 + [3e3] * 6 + [18.0] + [0.52] * 8
    assert verdict([run_of(losses, [0.1] * 20)], guessing=0.533).startswith("AdamW: too few steps for a verdict")
