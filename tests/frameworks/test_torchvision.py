"""The examples that train as torchvision's references do, beside their native twins; and resumed ones."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

EXAMPLES = Path(__file__).parents[2] / "examples"
CLASSIFICATION = ["--epochs", "3", "--images", "64", "--ema-steps", "4"]
DETECTION = ["--epochs", "2", "--images", "4"]
# BatchNorm on few pixels amplifies the rounding of float32, so that the runs are short.
FLOAT32 = {"rtol": 2e-5, "atol": 2e-5}
FLOAT64 = {"rtol": 1e-9, "atol": 1e-9}


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def classification():
    return example("train_classification")


@pytest.fixture
def detection():
    return example("train_detection")


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same_weights(ours, native, **tolerance):
    for (name, mine), theirs in zip(ours.named_parameters(), native.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


def assert_same_bits(one, other):
    for (name, mine), theirs in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name


def test_classification_equals_its_native_twin(classification, float64):
    losses, model, averaged = classification.main(CLASSIFICATION)
    native_losses, native_model, native_averaged = classification.main([*CLASSIFICATION, "--native"])
    torch.testing.assert_close(losses, native_losses, **FLOAT64)
    assert_same_weights(model, native_model, **FLOAT64)
    assert_same_weights(averaged, native_averaged, **FLOAT64)
    for mine, theirs in zip(averaged.buffers(), native_averaged.buffers(), strict=True):
        if mine.is_floating_point():
            torch.testing.assert_close(mine, theirs, **FLOAT32)  # a float32 number is what weighs them


# In float32 a difference in the last bit doubles with every step; bfloat16 makes 2^-9 of it, once it has rounded apart.
@pytest.mark.parametrize(
    ("how", "tolerance"),
    [([], 2e-4), pytest.param(["--amp"], 2e-3, marks=pytest.mark.slow)],
    ids=["float32", "autocast"],
)
def test_classification_begins_as_its_native_twin(classification, how, tolerance):
    runs = [classification.main([*CLASSIFICATION, *how, *twin]) for twin in ([], ["--native"])]
    assert torch.isfinite(runs[0][0]).all()
    torch.testing.assert_close(runs[0][0][:12], runs[1][0][:12], rtol=tolerance, atol=tolerance)


def test_classification_that_was_killed_is_resumed_bit_for_bit(classification, tmp_path, monkeypatch):
    options = [*CLASSIFICATION, "--checkpoint", str(tmp_path / "run.pt")]
    whole = classification.main(options)
    save = torch.save

    def save_and_die(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        classification.main(options)
    monkeypatch.undo()
    resumed = classification.main([*options, "--resume"])
    assert torch.equal(resumed[0], whole[0])
    assert_same_bits(resumed[1], whole[1])
    assert_same_bits(resumed[2], whole[2])


def test_average_copies_in_the_warm_up_and_its_decay_is_adjusted(classification):
    args = classification.arguments(["--batch-size", "16", "--epochs", "8", "--ema-steps", "4", "--ema-decay", "0.99"])
    assert classification.warmup_averagings(args) == 4
    assert classification.adjusted_decay(args) == pytest.approx(1 - 0.01 * 16 * 4 / 8)
    assert classification.adjusted_decay(args, world_size=1000) == 0


def test_detection_equals_its_native_twin(detection):
    options = ["--epochs", "1", "--images", "6"]
    losses, model = detection.main(options)
    native_losses, native_model = detection.main([*options, "--native"])
    torch.testing.assert_close(losses, native_losses, **FLOAT32)
    assert_same_weights(model, native_model, **FLOAT32)


def test_bad_images_skip_one_step_of_a_detector_and_leave_its_statistics_finite(detection, float64, capsys):
    options = [*DETECTION, "--bad-step", "1"]
    losses, model = detection.main(options)
    assert "skipped steps 1\n" in capsys.readouterr().out
    native_losses, native_model = detection.main([*options, "--native"])
    assert [number for number, loss in enumerate(losses) if not math.isfinite(loss)] == [1]
    torch.testing.assert_close(losses, native_losses, equal_nan=True, **FLOAT64)
    assert_same_weights(model, native_model, **FLOAT64)
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())
    assert not all(torch.isfinite(buffer).all() for buffer in native_model.buffers())


def test_detector_stops_at_a_loss_that_is_not_finite_where_it_is_told_to(detection):
    with pytest.raises(SystemExit, match="step 1: the loss is nan"):
        detection.main([*DETECTION, "--bad-step", "1", "--stop"])


def test_loss_alone_that_is_not_finite_skips_the_step(detection):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = detection.gradops.wrap(torch.optim.SGD([weight], lr=1.0))
    detection.one_pass_step(optimizer, weight.sum() + math.inf)  # its gradient is 1
    assert torch.equal(weight, torch.ones(3))
    detection.one_pass_step(optimizer, weight.sum())
    assert torch.equal(weight, torch.zeros(3))
