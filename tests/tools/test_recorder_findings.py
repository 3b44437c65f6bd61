"""What a Recorder says while it records: findings, standing trainings, samples, and files that cannot be written."""

import math
import os
import warnings

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("rich")

import gradops
import gradops.diagnose
from gradops.one_pass.stuck import StuckWarning
from gradops.record import findings
from gradops.record.run import Run
from gradops.record.samples import held, joined, of_row, table


def make(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, gradops.AdamW(model.named_parameters(), lr=1e-3, **settings)


def train(model, optimizer, steps, poison=(), start=0):
    for step in range(start, start + steps):
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        if step in poison:
            inputs[0, 0] = math.nan
        optimizer.backward(model(inputs).square().mean())
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def always(monkeypatch):
    """Looking may take any time."""
    monkeypatch.setattr(findings, "_SHARE", 1e9)


@pytest.mark.usefixtures("always")
def test_findings_are_reported_once_each_at_the_read_outs():
    model, optimizer = make()
    reported = []
    recorder = gradops.Recorder(optimizer, model, capacity=10, on_finding=lambda finding: reported.append(finding))
    train(model, optimizer, 34)
    assert reported == []
    train(model, optimizer, 5, poison={36}, start=34)
    assert reported == []  # the ring is not full yet
    train(model, optimizer, 1, start=39)
    assert {(finding.kind, finding.step) for finding in reported} == {("odd batch", 36), ("nonfinite gradient", 36)}
    assert all(finding.level == "warning" for finding in reported)
    train(model, optimizer, 30, start=40)
    recorder.close()
    assert len(reported) == 2


def test_findings_are_reported_by_close_at_the_latest():
    model, optimizer = make()
    reported = []
    with gradops.Recorder(optimizer, model, on_finding=lambda finding: reported.append(finding.kind)) as recorder:
        train(model, optimizer, 40, poison={36})
        assert reported == []
    assert "odd batch" in reported
    assert reported == [finding.kind for finding in recorder.report().findings if finding.trouble]


@pytest.mark.usefixtures("always")
def test_two_bad_batches_are_two_findings():
    model, optimizer = make()
    reported = []
    recorder = gradops.Recorder(optimizer, model, capacity=600, on_finding=lambda finding: reported.append(finding))
    train(model, optimizer, 1800, poison={100, 1300})
    assert [finding.step for finding in reported if finding.kind == "odd batch"] == [100, 1300]
    recorder.close()


def test_looking_that_takes_long_is_done_less_often():
    model, optimizer = make()
    reported = []
    recorder = gradops.Recorder(optimizer, model, capacity=10, on_finding=lambda finding: reported.append(finding.kind))
    recorder._findings._took = 1e6  # seconds
    train(model, optimizer, 40, poison={36})
    assert reported == []
    recorder.close()
    assert "odd batch" in reported


@pytest.mark.usefixtures("always")
def test_a_callback_may_end_the_training():
    model, optimizer = make()

    def stop(finding):
        raise KeyboardInterrupt(finding.text)

    gradops.Recorder(optimizer, model, capacity=40, on_finding=stop)
    with pytest.raises(KeyboardInterrupt, match="Step 36"):
        train(model, optimizer, 80, poison={36})


@pytest.mark.parametrize(("skips", "warned"), [(29, 0), (30, 1), (90, 1)])
def test_thirty_skipped_steps_in_a_row_warn_once(skips, warned):
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, capacity=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 8 + skips + 8, poison=set(range(8, 8 + skips)))
        recorder.close()
    said = [str(warning.message) for warning in caught if warning.category is StuckWarning]
    assert len(said) == warned
    assert all("30 steps in a row were skipped" in text for text in said)


def test_skips_now_and_then_do_not_warn():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, capacity=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 120, poison={step for step in range(120) if step % 20})
        recorder.close()


@pytest.mark.parametrize(("calls", "warned"), [(49, 0), (50, 1), (160, 1)])
def test_fifty_steps_without_a_gradient_warn_once(calls, warned):
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, capacity=16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 3)
        for _ in range(calls):
            optimizer.step()
        train(model, optimizer, 1)
        recorder.close()
    said = [str(warning.message) for warning in caught if warning.category is StuckWarning]
    assert len(said) == warned
    assert all("50 calls of step() in a row found no gradient" in text for text in said)
    assert len(recorder.run().steps) == 4


@pytest.mark.parametrize(
    "batch", [torch.tensor([3, 1, 4]), np.array([3, 1, 4]), [3, 1, 4], (torch.tensor(3), np.int64(1), 4)]
)
@pytest.mark.parametrize("backward_first", [False, True])
def test_batch_is_recorded_and_its_loss_counts_once(batch, backward_first, tmp_path):
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, capacity=2)
    expected = []
    for _ in range(3):
        loss = model(torch.ones(2, 6)).square().mean()
        if backward_first:
            optimizer.backward(loss)
        recorder.loss(loss, batch=batch)
        if not backward_first:
            optimizer.backward(loss)
        expected.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    train(model, optimizer, 1)
    run = recorder.run()
    assert run.loss[:3].tolist() == expected
    assert [run.batch(row) for row in range(4)] == [[3, 1, 4]] * 3 + [[]]
    run.save(tmp_path / "run.npz")
    loaded = Run.load(tmp_path / "run.npz")
    assert [loaded.batch(row) for row in range(4)] == [[3, 1, 4]] * 3 + [[]]


def test_batches_of_one_step_are_put_together_and_may_be_names():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, capacity=2)
    indices = torch.tensor([0, 7])
    recorder.loss(1.0, batch=indices)
    indices.fill_(9)
    recorder.loss(0.5, batch=5)
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    recorder.loss(2.0, batch=["a.png", "b.png", "c.png", "d.png"])
    optimizer.step()
    optimizer.step()
    run = recorder.run()
    assert [run.batch(row) for row in range(3)] == [["0", "7", "5"], ["a.png", "b.png", "c.png", "d.png"], []]
    assert run.loss[:2].tolist() == [1.5, 2.0]
    assert run.has_loss.tolist() == [True, True, False]


def test_two_passes_over_one_loss_still_add_up():
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer)
    loss = model(torch.ones(1, 6)).sum()
    optimizer.backward(loss, retain_graph=True)
    optimizer.backward(loss)
    optimizer.step()
    assert recorder.run().loss[0] == 2 * loss.item()


@pytest.mark.parametrize("batch", [torch.ones(3), torch.tensor([True]), [0.5], [None]])
def test_samples_that_are_neither_indices_nor_names_are_refused(batch):
    _, optimizer = make()
    recorder = gradops.Recorder(optimizer)
    with pytest.raises(TypeError, match="batch must hold the samples' indices or names"):
        recorder.loss(1.0, batch=batch)
    assert recorder._loss is None


def test_tables_of_samples_keep_every_step():
    first, second = table([[held([1, 2])], []]), table([[held("x"), held([7])]])
    both = joined([first, second])
    assert [of_row(row) for row in both] == [["1", "2"], [], ["x", "7"]]
    assert joined([]).shape == (0, 0)
    assert [of_row(row) for row in joined([first, table([[]])])] == [[1, 2], [], []]


def test_path_at_which_nothing_can_be_written_is_refused_before_anything_changed(tmp_path):
    model, optimizer = make()
    (tmp_path / "file").write_text("")
    for path, error in (
        (tmp_path / "missing" / "run.npz", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        (tmp_path / "file" / "run.npz", NotADirectoryError),
    ):
        with pytest.raises(error, match="path"):
            gradops.Recorder(optimizer, model, path=path)
    assert optimizer.engine.watchers == ()
    assert not optimizer.track_updates
    assert not any(module._forward_hooks for module in model.modules())


def test_write_that_fails_later_warns_and_training_goes_on(tmp_path, monkeypatch):
    model, optimizer = make()
    folder = tmp_path / "folder"
    folder.mkdir()
    recorder = gradops.Recorder(optimizer, model, capacity=2, path=folder / "run.npz")
    folder.rmdir()
    with pytest.warns(RuntimeWarning, match=r"could not write .*run\.npz"):
        train(model, optimizer, 3)
    folder.mkdir()
    train(model, optimizer, 2)
    recorder.close()
    assert len(Run.load(folder / "run.npz").steps) == 5

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    model, optimizer = make()
    with (
        pytest.warns(RuntimeWarning, match="No space left"),
        gradops.Recorder(optimizer, capacity=2, path=folder / "run.npz"),
    ):
        train(model, optimizer, 3)
    assert len(Run.load(folder / "run.npz").steps) == 5  # the old one, whole
    assert os.listdir(folder) == ["run.npz"]


def test_file_of_the_first_format_is_read(tmp_path):
    model, optimizer = make()
    recorder = gradops.Recorder(optimizer, model)
    train(model, optimizer, 25)
    run = recorder.run()
    run.save(tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as file:
        arrays = {name: file[name] for name in file.files if name not in ("has_loss", "samples", "about")}
        about = str(file["about"])
    first = about[: about.index(', "modules"')] + ', "format_version": 1}'
    np.savez_compressed(tmp_path / "old.npz", about=first, **arrays)
    old = Run.load(tmp_path / "old.npz")
    assert (old.has_loss, old.samples, old.modules, old.running) == (None, None, {}, [])
    assert old.batch(0) == []
    assert "Nothing wrong was found." in str(gradops.diagnose.report(old))
