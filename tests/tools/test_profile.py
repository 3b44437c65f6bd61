"""`python -m gradops profile`: a small training, from the command to the browser."""

import io
import json
import re

import pytest
import torch
from browser import dom_of
from quick import slow_but
from rich.console import Console

import gradops
from gradops.__main__ import main
from gradops.bench.interleave import Samples
from gradops.bench.optimizers import Subject, subject
from gradops.bench.zoo import ModelError
from gradops.optim.classes import classes
from gradops.profile import batch, command, screen, tables
from gradops.profile.loop import NAMES, PHASES, GradopsLoop, Record, Settings, TorchLoop
from gradops.profile.phases import Cost
from gradops.profile.result import Result
from gradops.profile.trace import Trace
from gradops.profile.training import Source

TRAINING = """
import torch
from browser import dom_of
from torch import nn

def make_training(batch_size=4):
    def block(channels):
        return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    model = nn.Sequential(nn.Sequential(block(3), block(8), block(8)), nn.Flatten(), nn.Linear(8 * 64, 5))
    data = ((torch.randn(batch_size, 3, 8, 8), torch.randint(5, (batch_size,))) for _ in range(3))
    return model, torch.optim.AdamW(model.named_parameters(), lr=1e-3), data, nn.functional.cross_entropy

def make_rprop():
    model = nn.Linear(3, 2)
    return model, torch.optim.Rprop(model.parameters()), [], None

def make_nothing():
    return None
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("training") / "train.py"
    path.write_text(TRAINING)
    return f"{path}:make_training"


@pytest.fixture(scope="module")
def output(script, tmp_path_factory):
    """What one run in float16, over two batch sizes, wrote."""
    folder = tmp_path_factory.mktemp("report")
    arguments = "--precision fp16 --accumulate 2 --steps 4 --profiled-steps 2 --batch-size 2,4 --output"
    assert main(["profile", script, *arguments.split(), str(folder)]) == 0
    return folder


def loops(script, settings=Settings(), **source):  # noqa: B008  (frozen)
    made = Source(script, **source)
    return TorchLoop(made.make(None), settings), GradopsLoop(made.make(None), settings)


def test_run_writes_traces_pictures_page_and_figures(output):
    files = {path.name for path in output.iterdir()}
    assert files == {
        "report.html",
        "report.json",
        *(f"timeline-{size}.png" for size in (2, 4)),
        *(f"trace-{name}-{size}.json" for name in NAMES for size in (2, 4)),
    }


def test_figures_have_every_phase_of_both_loops(output):
    figures = json.loads((output / "report.json").read_text())
    assert [found["batch_size"] for found in figures["results"]] == [2, 4]
    theirs, ours = (figures["results"][0]["loops"][name] for name in NAMES)
    assert set(theirs["phases"]) == {*PHASES, "other"}
    assert set(ours["phases"]) >= {"forward", "backward", "optimizer", "gradops.grad_stats", "gradops.update"}
    assert theirs["phases"]["optimizer"]["launches"] > ours["phases"]["optimizer"]["launches"] == 2
    assert len(theirs["records"]) == 3 + 4
    assert figures["machine"]["threads"] == torch.get_num_threads()


def test_each_trace_holds_its_own_loop_only(output):
    for name, other in zip(NAMES, reversed(NAMES), strict=True):
        events = json.loads((output / f"trace-{name}-4.json").read_text())["traceEvents"]
        names = {event["name"] for event in events}
        assert f"{name} step" in names
        assert f"{other} step" not in names
        assert ("gradops.step" in names) == (name == "gradops")


def test_page_asks_for_nothing_else(output):
    text = (output / "report.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "://" not in text


def test_page_works_in_a_browser(output):
    dom = dom_of(output / "report.html")
    assert 'data-ready="yes"' in dom, "the page's script did not come to its end"
    assert dom.count("<canvas") == 2
    assert dom.count("<button>after the backward pass</button>") == 2
    for text in ("Batch sizes", "Where the time goes, batch size 4", "gradops.update", "skipped steps"):
        assert text in dom


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_both_loops_do_the_same_training(script, precision):
    """They part by roundings alone, which half precision and Adam make larger from step to step."""
    theirs, ours = loops(script, Settings(precision=precision, accumulate=2, max_norm=0.1))
    for _ in range(5):
        expected, found = theirs.timed_step(), ours.timed_step()
        assert found.loss == pytest.approx(expected.loss, rel=1e-5 if precision == "fp32" else 1e-2)
        assert (found.loss_scale, found.skipped) == (expected.loss_scale, expected.skipped)
    if precision == "fp32":
        torch.testing.assert_close(ours.params, theirs.params, rtol=1e-3, atol=1e-4)


def test_accumulation_averages_over_its_batches(script):
    one, several = TorchLoop(Source(script).make(None), Settings()), TorchLoop(Source(script).make(None), Settings())
    several.settings = Settings(accumulate=3)
    grads = []
    for loop in (one, several):
        loop.training.optimizer.register_step_pre_hook(
            lambda optimizer, *_: grads.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])
        )
        for _ in range(3 // loop.settings.accumulate):
            loop.settings = Settings(accumulate=loop.settings.accumulate, max_norm=1e9)
            loop.step()
    assert len(grads) == 4
    first = TorchLoop(Source(script).make(None), Settings())
    losses = [first.training.loss(first.training.model(x), y) for x, y in first.training.batches]
    torch.stack(losses).mean().backward()
    for found, param in zip(grads[-1], first.params, strict=True):
        torch.testing.assert_close(found, param.grad)


def test_step_with_a_nan_is_shown_with_the_parameters_it_came_from(script):
    theirs, ours = loops(script, Settings(precision="fp16"))
    for loop in (theirs, ours):
        loop.training.batches[0][0][:] = torch.nan
    found, expected = ours.timed_step(), theirs.timed_step()
    assert found.skipped
    assert expected.skipped
    assert found.nonfinite["0.0.0.weight"] == 8 * 3 * 9
    said = list(tables.nonfinite_events([Record(1.0, 1.0, 1.0, skipped=False, nonfinite={}), found]))
    assert said[0][0] == 2
    assert "and 11 more parameters" in said[0][1]


def test_checkpointing_computes_the_same_and_keeps_less(script):
    plain, checkpointed = (loops(script, checkpointing=on)[0] for on in (False, True))
    for _ in range(3):
        assert checkpointed.timed_step().loss == pytest.approx(plain.timed_step().loss, rel=1e-6)
    kept = [batch.peak(Source(script, checkpointing=on), Settings(), 64) for on in (False, True)]
    assert kept[1] < kept[0]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("make_rprop", "must be one of torch.optim.Adagrad, .*, got Rprop"),
        ("make_nothing", r"must return \(model, optimizer, data, loss\), got NoneType"),
        ("make_other", "has no function make_other"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(script, function, sentence):
    with pytest.raises(ModelError, match=sentence):
        Source(script.replace("make_training", function)).make(None)


@pytest.mark.parametrize("name", slow_but(["AdamW", "SGD", "Lion"], classes()))
def test_every_optimizer_is_trained_by_its_native_class_and_by_ours(name):
    of = subject(name)
    source = Source("demo", optimizer=name.lower())
    theirs, ours = TorchLoop(source.make(2), Settings()), GradopsLoop(source.make(2, ours=True), Settings())
    optimizer = theirs.training.optimizer
    assert type(optimizer) is of.theirs
    assert optimizer.defaults.get("fused", False) == ("torch fused" in of.forms)
    assert type(ours.optimizer) is of.ours
    losses = [[loop.timed_step().loss for _ in range(3)] for loop in (theirs, ours)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_optimizers_and_forms_that_there_are_not_are_refused_by_name(script):
    with pytest.raises(SystemExit, match="--optimizer: lomo is none of "):
        main(["profile", "--optimizer", "lomo"])
    with pytest.raises(SystemExit, match="--optimizer and --form are for --model"):
        main(["profile", script, "--optimizer", "sgd"])


def test_form_that_the_optimizer_has_not_is_refused(monkeypatch):
    monkeypatch.setattr("gradops.profile.training.subject", lambda name: Subject(gradops.SGD, torch.optim.Rprop))
    with pytest.raises(ModelError, match="torch's Rprop has no form fused, only torch loop, torch foreach"):
        Source("demo", form="fused").make(2)


def test_batch_size_that_cannot_reach_the_function_is_refused(script):
    with pytest.raises(ModelError, match="has no parameter batch_size"):
        Source(script.replace("make_training", "make_rprop")).make(4)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 7, 100, 1000, 5000])
def test_largest_batch_is_found_to_an_eighth(limit):
    tried = []
    found = batch.largest(lambda size: tried.append(size) or size <= limit, most=4096)
    assert found <= limit
    assert found >= min(limit, 4096) * 7 / 8 - 1
    assert len(tried) < 20


def test_largest_batch_stays_below_the_memory_limit(script):
    source, limit = Source(script), 400_000
    found = batch.search(source, Settings(), limit, lambda *_: None)
    assert batch.peak(source, Settings(), found) <= limit < batch.peak(source, Settings(), 2 * found)


def test_memory_of_a_gpu_that_is_full_is_no_error(script, monkeypatch):
    def full(source, settings, size):
        if size > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    monkeypatch.setattr(batch, "peak", full)
    told = []
    assert batch.search(Source(script), Settings(), None, lambda *row: told.append(row)) == 5
    assert (8, None) in told


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--batch-size", "auto"], "needs --memory-limit"),
        (["--steps", "1"], "--steps must be at least 2"),
        (["--model", "no_such_net"], "no_such_net|gradops"),
        (["train.py:make", "--model", "resnet18"], "--model resnet18 and train.py:make both name what is trained"),
        (["train.py"], "train.py names no function; write train.py:make_training"),
        *([] if torch.cuda.is_available() else [(["--device", "cuda"], re.escape(command.NO_GPU))]),
    ],
)
def test_options_that_cannot_be_met_are_said_in_a_sentence(tmp_path, arguments, sentence):
    with pytest.raises(SystemExit, match=sentence):
        main(["profile", "--output", str(tmp_path), *arguments])


def test_terminal_shows_everything_in_80_columns(script, tmp_path, capsys):
    arguments = "--steps 3 --profiled-steps 1 --batch-size 2,1000 --output"
    assert main(["profile", script, *arguments.split(), str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for word in ("forward", "gradops.update", "images per second", "peak in backward", "loss scale", "Batch sizes"):
        assert word in text


def test_progress_names_the_loop_that_steps(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")  # none is drawn where it is "dumb"
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with screen.progress(console, "batch size 4", 2) as report:
        report("torch")
        report("gradops")
    assert "batch size 4, gradops" in console.file.getvalue()


AFTER_BACKWARD = {"torch": {"forward": 0.95, "norm": 0.05}, "gradops": {"forward": 0.95, "optimizer": 0.01}}


@pytest.mark.parametrize(("seconds", "said"), [([0.9, 1.4, 0.7], True), ([0.5, 0.6, 0.7], False)])
def test_steps_that_differ_less_than_their_rounds_are_not_told_apart(seconds, said, monkeypatch):
    monkeypatch.setattr(Result, "profiler_overhead", lambda self, name: 0.0)
    samples = {"torch": Samples([1.0, 1.0, 1.0]), "gradops": Samples(seconds)}
    result = Result(4, 4, {}, samples, {}, {}, Trace({"traceEvents": []}))
    assert ("cannot be told apart" in tables.verdict(result, AFTER_BACKWARD)) == said


def test_gpu_table_of_launches_waits_host_and_device_time_fits_80_columns():
    cost = Cost(seconds=1.234e-3, launches=1234, waits=12, device_seconds=5.678e-3)
    costs = dict.fromkeys((*PHASES, "other"), cost)
    result = Result(4, 4, {}, {}, {"torch": costs, "gradops": {"optimizer": cost}}, {}, Trace({"traceEvents": []}))
    console = Console(file=io.StringIO(), width=80)
    screen.show(console, tables.launches(result, "cuda"))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for word in ("launches", "waits", "host", "device", "1,234", "1.23 ms", "5.68 ms"):
        assert word in text


def test_speed_of_a_step_is_bounded_by_the_share_of_what_changed(monkeypatch):
    monkeypatch.setattr(Result, "profiler_overhead", lambda self, name: 0.0)
    samples = {"torch": Samples([1.3, 1.32, 1.31]), "gradops": Samples([1.0, 1.0, 1.0])}
    said = tables.verdict(Result(4, 4, {}, samples, {}, {}, Trace({"traceEvents": []})), AFTER_BACKWARD)
    assert "It is 5.0% of a step, which makes steps 1.04 times as fast at most" in said


@pytest.mark.parametrize("text", ["a", "2,b", "1.5"])
def test_batch_size_that_is_no_number_is_said_in_a_sentence(text, capsys):
    with pytest.raises(SystemExit):
        main(["profile", "--batch-size", text])
    assert f"must be numbers such as 64 or 64,128, or auto, got {text}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["bench", "--model", "2x3"], ["report", "missing.npz"]])
def test_picture_of_an_unknown_format_is_refused_before_the_run(command, tmp_path):
    with pytest.raises(SystemExit, match=r"--plot .*x.foo: a picture's name ends in one of"):
        main([*command, "--plot", str(tmp_path / "x.foo")])
    with pytest.raises(SystemExit, match="--plot: there is no directory"):
        main([*command, "--plot", str(tmp_path / "missing" / "x.png")])
