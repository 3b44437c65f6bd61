"""The recorder's file: the whole record, whatever ends the training."""

import subprocess
import sys
import textwrap

import numpy as np
import torch
from torch import nn

import gradops
from gradops.record.run import Run


def make():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, gradops.AdamW(model.named_parameters())


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.backward(model(torch.randn(5, 6)).square().mean())
        optimizer.step()


def test_file_is_the_run_and_is_written_when_the_ring_is_full(tmp_path):
    model, optimizer = make()
    path = tmp_path / "run.npz"
    recorder = gradops.Recorder(optimizer, model, capacity=2, path=path)
    train(model, optimizer, 3)
    assert Run.load(path).steps.tolist() == [0, 1]
    recorder.close()
    loaded, run = Run.load(path), recorder.run()
    assert loaded.steps.tolist() == [0, 1, 2]
    for name, value in vars(run).items():
        np.testing.assert_array_equal(getattr(loaded, name), value, name)


def test_file_of_a_script_that_raises_holds_every_step(tmp_path):
    script = """
        import sys, torch, gradops
        param = torch.nn.Parameter(torch.ones(3))
        optimizer = gradops.AdamW([param])
        recorder = gradops.Recorder(optimizer, path=sys.argv[1], capacity=4)
        for _ in range(6):
            optimizer.backward(param.square().sum())
            optimizer.step()
        raise SystemExit(3)
    """
    path = tmp_path / "run.npz"
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), path], check=False)
    assert done.returncode == 3
    assert Run.load(path).steps.tolist() == list(range(6))


def test_long_records_are_written_less_often(tmp_path):
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, capacity=1, path=tmp_path / "run.npz")
    train(model, optimizer, 1)
    recorder._file._took = 1e6  # seconds
    train(model, optimizer, 3)
    assert Run.load(tmp_path / "run.npz").steps.tolist() == [0]


def test_empty_run_can_be_saved_and_loaded(tmp_path):
    model, optimizer = make()
    gradops.Recorder(optimizer, model).save(tmp_path / "run.npz")
    run = Run.load(tmp_path / "run.npz")
    assert (run.norms.shape, run.lr.shape, run.activation_histogram.shape) == ((0, 4), (0, 1), (0, 3, 56))
