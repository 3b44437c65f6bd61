"""Where a record goes besides its file: loggers, CSV, TensorBoard."""

import csv
import math

import pytest
import torch
from torch import nn

import gradops
from gradops.record.sinks import CsvFile, write_tensorboard


def make(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = gradops.AdamW(model.named_parameters(), max_norm=0.1)
    return model, optimizer, gradops.Recorder(optimizer, model, **options)


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.backward(model(torch.randn(5, 6)).square().mean())
        optimizer.step()


def same(row, other):
    assert row.keys() == other.keys()
    assert all(other[key] == pytest.approx(value, nan_ok=True) for key, value in row.items())


def test_rows_are_flat_dictionaries_of_numbers():
    model, optimizer, recorder = make()
    train(model, optimizer, 3)
    run, rows = recorder.run(), list(recorder.rows())
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(type(value) in (int, float) for row in rows for value in row.values())
    last = rows[2]
    assert last["grad_norm"] == run.grad_norm[2]
    assert last["lr"] == pytest.approx(1e-3)
    assert last["norms/2.weight"] == run.norms[2, run.names.index("2.weight")]
    assert last["activation_negative/1"] == 0.0
    assert last["activation_std/0"] == run.activation_std[2, 0]


def test_callback_gets_each_step_once_when_the_ring_is_full():
    seen = []
    model, optimizer, recorder = make(capacity=3, callback=seen.append)
    train(model, optimizer, 5)
    assert [row["step"] for row in seen] == [0, 1, 2]
    recorder.close()
    assert [row["step"] for row in seen] == [0, 1, 2, 3, 4]
    for row, other in zip(seen, recorder.rows(), strict=True):
        same(row, other)


def test_csv_file_holds_what_the_callback_got(tmp_path):
    path = tmp_path / "run.csv"
    model, optimizer, recorder = make(capacity=2, callback=CsvFile(path))
    train(model, optimizer, 3)
    recorder.close()
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    for row, line in zip(recorder.rows(), lines, strict=True):
        same(row, {key: float(value) for key, value in line.items()})


class Writer:
    """Notes the calls that a SummaryWriter would get."""

    def __init__(self):
        self.scalars, self.histograms = [], []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, value, step))

    def add_histogram_raw(self, tag, **raw):
        self.histograms.append((tag, raw))


def test_tensorboard_gets_what_is_new_and_measured():
    model, optimizer, recorder = make(activations_every=2)
    writer = Writer()
    train(model, optimizer, 3)
    recorder.to_tensorboard(writer)
    before = len(writer.scalars)
    train(model, optimizer, 2)
    recorder.to_tensorboard(writer)
    run = recorder.run()
    norms = {step: value for tag, value, step in writer.scalars if tag == "grad_norm"}
    assert norms == dict(enumerate(run.grad_norm.tolist()))
    assert not any(math.isnan(value) for _, value, _ in writer.scalars)
    assert {step for _, _, step in writer.scalars[before:]} == {3, 4}
    steps = [raw["global_step"] for tag, raw in writer.histograms if tag == "activations/0"]
    assert steps == [0, 2, 4]
    for _, raw in writer.histograms:
        assert len(raw["bucket_limits"]) == len(raw["bucket_counts"])
        assert sum(raw["bucket_counts"]) == raw["num"]


def test_a_real_summary_writer_takes_the_record(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model, optimizer, recorder = make()
    train(model, optimizer, 3)
    with tensorboard.SummaryWriter(str(tmp_path)) as writer:
        recorder.to_tensorboard(writer)
    found = events.EventAccumulator(str(tmp_path), {"histograms": 0}).Reload()
    norms = [event.value for event in found.Scalars("grad_norm")]
    assert norms == recorder.run().grad_norm.tolist()
    assert [event.step for event in found.Histograms("activations/0")] == [0, 1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["mean", "std", "abs_max"])
def test_histogram_of_outputs_whose_measures_overflowed_is_one_of_numbers(name, value):
    model, _, recorder = make()
    train(model, recorder._optimizer, 2)
    run, writer = recorder.run(), Writer()
    getattr(run, f"activation_{name}")[:] = value
    write_tensorboard(run, writer)
    assert writer.histograms
    for _, raw in writer.histograms:
        assert all(math.isfinite(raw[key]) for key in ("min", "max", "sum", "sum_squares"))
        assert raw["bucket_limits"] == sorted(raw["bucket_limits"])
