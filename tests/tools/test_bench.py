"""`python -m gradops bench`: what it measures, prints and writes."""

import io
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from quick import slow_but
from rich.console import Console

import gradops
from gradops.__main__ import main
from gradops.bench import command, libraries, measure, plot, scaling, table
from gradops.bench.costs import Costs
from gradops.bench.interleave import Samples, in_turns
from gradops.bench.machine import describe
from gradops.bench.models import shapes
from gradops.bench.optimizers import Subject, subject
from gradops.bench.recipes import (
    GRADOPS,
    GRADOPS_CAPPED,
    GRADOPS_EMA,
    RECIPES,
    make_grads,
    make_params,
    native_recipes,
    recipes_for,
    recipes_of,
)
from gradops.bench.rows import Found, Row, rows_of
from gradops.bench.zoo import ModelError, make_model
from gradops.optim.classes import classes

NATIVE = Row("9x9", "torch", 10**9, 3, seconds=1.0, spread=0.5, versus=GRADOPS, gradops_speedup=2.0, calls=7, waits=1)
OURS = Row("9x9", GRADOPS, 10**9, 3, seconds=0.5, spread=0.01, bytes_per_param=32, bytes_per_second=64e9)


def bench(tmp_path, *arguments):
    """The JSON of a run on a small case."""
    path = tmp_path / "bench.json"
    assert main(["bench", "--seconds", "0.02", "--json", str(path), *arguments]) == 0
    return json.loads(path.read_text())


def printed(rows, device="cpu"):
    console = Console(file=io.StringIO(), width=80)
    table.show(console, rows, device)
    return console.file.getvalue()


def test_every_recipe_is_timed_counted_and_compared(tmp_path):
    found = {row["recipe"]: row for row in bench(tmp_path, "--model", "3x100")["rows"]}
    assert list(found) == [recipe.name for recipe in recipes_for("3x100")]
    for row in found.values():
        assert row["failed"] is None
        assert row["seconds"] > 0
        assert row["calls"] > 0
        assert row["bytes_per_param"] > 0
        assert row["waits"] in (0, 1)
        assert (row["gradops_speedup"] is None) == (row["versus"] is None)


def test_document_says_machine_versions_threads_and_command(tmp_path):
    document = bench(tmp_path, "--model", "3x5", "--recipes", "fused")
    machine = document["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert machine["torch"] == torch.__version__
    assert document["command"].startswith("python -m gradops")
    assert all(row["rounds"] >= 7 for row in document["rows"])


def test_picture_is_written_for_models_and_for_scaling(tmp_path):
    picture = tmp_path / "bench.png"
    bench(tmp_path, "--model", "3x5", "4x5", "--recipes", "fused", "--plot", str(picture))
    assert picture.read_bytes()[:4] == b"\x89PNG"
    rows = [replace(NATIVE, params=params, tensors=scaling.TENSORS) for params in (10, 100)]
    plot.draw(rows, {"machine": describe(), "command": ""}, tmp_path / "scaling.png", by_work=True)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_bandwidth_line_is_that_of_the_largest_case():
    stream = replace(OURS, recipe="stream in_turn")
    rows = [replace(stream, params=10, bytes_per_second=9e9), stream, replace(stream, bytes_per_second=5e9), NATIVE]
    assert plot.memory_bandwidth(rows) == 64e9
    assert plot.memory_bandwidth([NATIVE, OURS]) is None


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_table_fits_80_columns_and_shows_ratio_bandwidth_and_waits(device):
    text = printed([NATIVE, OURS], device)
    assert max(map(len, text.splitlines())) <= 80
    for word in ("2.00x", "64", "waits", "share"):
        assert word in text


def test_wide_spread_and_failures_are_said():
    text = printed([NATIVE, OURS, replace(NATIVE, recipe="broken", seconds=None, spread=None, failed="no such device")])
    assert "Wide spread, over 25%: torch." in text
    assert "not measured: broken: no such device" in text


def test_words_choose_recipes_and_bring_what_they_are_compared_with():
    averaged = (GRADOPS_EMA, "torch fused + GradScaler + clip + ModelEmaV3")
    chosen = [recipe.name for recipe in command.select("3x5", RECIPES, ["FUSED"]) if recipe.name not in averaged]
    assert chosen == [
        "torch fused + GradScaler + clip",
        "torch fused + clip",
        "gradops + loss scale",
        "gradops",
    ]
    with pytest.raises(SystemExit, match="none has lion in its name"):
        command.select("3x5", RECIPES, ["lion"])


@pytest.mark.parametrize("name", slow_but(["AdamW", "SGD", "LARS"], classes()))
def test_every_recipe_of_every_optimizer_is_timed_and_counted(name, tmp_path):
    rows = bench(tmp_path, "--model", "3x100", "--optimizer", name.upper())["rows"]
    expected = [recipe.name for recipe in recipes_of(subject(name)) if recipe.cases is None]
    assert [row["recipe"] for row in rows] == expected
    assert {row["optimizer"] for row in rows} == {name}
    done = [row for row in rows if row["failed"] is None]
    assert len(done) >= len(rows) - 1
    assert GRADOPS_CAPPED in {row["recipe"] for row in done} or name not in ("Adam", "AdamW", "SGD")
    assert all(row["bytes_per_param"] > 0 for row in done)


@pytest.mark.slow
def test_all_optimizers_are_measured_beside_their_fastest_native_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = bench(tmp_path, "--model", "3x64", "--optimizer", "all")["rows"]
    assert {row["optimizer"] for row in rows} == classes().keys()
    of_sgd = [row["recipe"] for row in rows if row["optimizer"] == "SGD"]
    assert of_sgd[:2] == ["torch fused + GradScaler + clip", "torch fused + clip"]
    assert {"gradops + loss scale", "gradops"} <= {*of_sgd}
    assert not any("foreach" in name or "max_relative_step" in name for name in of_sgd)
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80
    assert any(line.startswith("3x64, SGD, 192 float32 parameters") for line in printed)


def test_optimizer_without_its_library_is_left_out_with_the_reason(monkeypatch, capsys):
    def missing(cls):
        raise ImportError(f"torch has no {cls.__name__}, and timm is not installed, which has one")

    monkeypatch.setattr("gradops.bench.optimizers.native_class", missing)
    assert main(["bench", "--model", "3x5", "--optimizer", "all"]) == 0
    assert "not measured: SGD: torch has no SGD, and timm is not installed" in " ".join(capsys.readouterr().out.split())


def test_optimizer_that_torch_has_not_is_measured_beside_timms():
    optim = pytest.importorskip("timm.optim")
    of = Subject(gradops.SGD, optim.Lion)
    found = native_recipes(of)
    assert [recipe.name for recipe in found if recipe.versus in ("gradops", "gradops + loss scale")] == [
        "timm + GradScaler + clip",
        "timm + clip",
    ]
    for recipe in found[:2]:
        params = make_params([(3, 4)], make_grads([(3, 4)]))
        before = params[0].detach().clone()
        recipe.build(params)()
        assert not torch.equal(params[0], before)


def test_unknown_optimizer_is_refused_by_those_there_are():
    with pytest.raises(SystemExit, match=r"^--optimizer: lomo is none of .*AdamW, .*SGD.*, all$"):
        main(["bench", "--optimizer", "lomo"])
    with pytest.raises(SystemExit, match="--scaling is of one optimizer"):
        main(["bench", "--optimizer", "all", "--scaling"])


def test_own_model_comes_from_a_file(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("import torch\ndef make_model():\n    return torch.nn.Linear(3, 2)\ndef number():\n    return 3\n")
    assert shapes(f"{own}:make_model") == [(2, 3), (2,)]
    with pytest.raises(ModelError, match="has no function other"):
        make_model(f"{own}:other")
    with pytest.raises(ModelError, match=r"must return a torch\.nn\.Module, got int"):
        make_model(f"{own}:number")
    with pytest.raises(ModelError, match="there is no Python file"):
        make_model(f"{tmp_path}/missing.py:make_model")


def test_model_that_needs_an_absent_library_names_the_extra(monkeypatch):
    for name in ("torchvision", "torchvision.models", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"pip install 'gradops\[models\]'"):
        main(["bench", "--model", "swin_t"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so():
    arguments = [sys.executable, "-m", "gradops", "bench", "--device", "cuda"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [command.NO_GPU]


def test_missing_directory_is_said_before_anything_is_measured(tmp_path):
    with pytest.raises(SystemExit, match="there is no directory"):
        main(["bench", "--plot", str(tmp_path / "missing" / "bench.png")])


def test_gradients_that_gradscaler_refuses_are_listed_and_the_others_measured(tmp_path, capsys):
    rows = bench(tmp_path, "--model", "3x64", "--dtype", "float16", "--recipes", "fused")["rows"]
    failed = {row["recipe"]: row["failed"] for row in rows}
    assert "FP16" in failed["torch fused + GradScaler + clip"]
    assert failed["gradops + loss scale"] is None
    assert "not measured: torch fused + GradScaler + clip" in " ".join(capsys.readouterr().out.split())


def test_recipes_that_do_not_fit_together_are_timed_in_pairs():
    fit = list(measure.groups_of(RECIPES, 1000, 4, math.inf))
    assert fit == [RECIPES]
    pairs = list(measure.groups_of(RECIPES, 1000, 4, 100_000))
    assert [[recipe.name for recipe in pair] for pair in pairs[:2]] == [
        ["torch loop + GradScaler + clip", "gradops + loss scale"],
        ["torch loop + clip", "gradops"],
    ]
    assert {recipe.name for pair in pairs for recipe in pair} == {recipe.name for recipe in RECIPES}


def test_pairs_measure_every_recipe_once(tmp_path):
    rows = bench(tmp_path, "--model", "3x64", "--recipes", "torch f", "--memory", "1e-9")["rows"]
    assert [row["recipe"] for row in rows] == [recipe.name for recipe in command.select("", RECIPES, ["torch f"])]
    assert all(row["seconds"] for row in rows)


def test_ratio_is_of_the_same_rounds():
    found = Found()
    recipe, ours = RECIPES[1], next(recipe for recipe in RECIPES if recipe.name == GRADOPS)
    found.add({recipe.name: Samples([4.0, 4.0, 40.0]), GRADOPS: Samples([1.0, 2.0, 10.0])}, [recipe, ours])
    row = rows_of("3x5", [(5,)] * 3, "float32", [recipe, ours], [], found)[0]
    assert (row.seconds, row.gradops_speedup) == (4.0, 4.0)


def test_share_is_of_the_fastest_stream_in_the_same_rounds():
    """A machine that is slower for some rounds is so for both."""
    found, ours = Found(), next(recipe for recipe in RECIPES if recipe.name == GRADOPS)
    streams = {"stream side_by_side": Samples([3.0, 6.0, 30.0]), "stream in_turn": Samples([4.0, 7.0, 30.0])}
    found.costs[GRADOPS] = Costs(bytes=0, calls=1, waits=0)
    found.add({GRADOPS: Samples([2.5, 5.0, 4.0])} | streams, [ours], streams)
    rows = {row.recipe: row for row in rows_of("3x5", [(5,)] * 3, "float32", [ours], list(streams), found)}
    assert rows["stream side_by_side"].share_of_stream == 1.0
    assert rows["stream in_turn"].share_of_stream == pytest.approx(6 / 7)
    assert rows[GRADOPS].share_of_stream == pytest.approx(1.2)  # both move 32 bytes


def test_functions_take_turns_in_each_round():
    order = []
    in_turns({"a": 0, "b": 0}, lambda name: order.append(name) or 1.0, rounds=4)
    assert all({*order[start : start + 2]} == {"a", "b"} for start in range(0, 8, 2))


def test_scaling_grows_parameters_then_tensors():
    cases = list(scaling.cases(3e8))
    counts = [(len(tensors), sum(map(math.prod, tensors))) for tensors in map(shapes, cases[:3])]
    assert counts == [(100, 10**4), (100, 10**5), (100, 10**6)]
    assert "100x3000000" in cases
    tensors = [shapes(case) for case in cases[7:]]
    assert [len(found) for found in tensors] == [10, 50, 500, 1000, 5000, 10_000]
    assert {sum(map(math.prod, found)) for found in tensors} == {scaling.PARAMS}
    assert len(set(cases)) == len(cases)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_absent_libraries_are_named_with_the_reason(device):
    recipes, absent = libraries.find_libraries(device)
    assert len(recipes) + len(absent) == sum(device in library.devices for library in libraries.LIBRARIES)
    assert all(absent.values())


def test_library_that_is_there_steps_with_torchs_adamw_defaults():
    torchs = libraries.Library("torch's own", "torch.optim", "AdamW", options=())
    shape_list = [(3, 4), (5,)]
    ours, reference = (make_params(shape_list, make_grads(shape_list)) for _ in range(2))
    for mine, theirs in zip(ours, reference, strict=True):
        theirs.data.copy_(mine.data)
    torchs.recipe().build(ours)()
    torch.optim.AdamW(reference, lr=1e-5).step()  # the gradients' norm is too small to be clipped
    for mine, theirs in zip(ours, reference, strict=True):
        assert torch.equal(mine, theirs)


def test_library_that_cannot_be_captured_says_so():
    library = libraries.Library("torch's own", "torch.optim", "AdamW", options=(), capturable=False)
    with pytest.raises(RuntimeError, match="cannot be captured"):
        library.recipe().build([], capturable=True)


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe.cases is None], ids=lambda r: r.name)
def test_every_recipe_can_be_built_for_a_graph(recipe):
    """Only the keyword is tried: a capturable step itself needs a GPU."""
    assert callable(recipe.build(make_params([(3, 4)], make_grads([(3, 4)])), capturable=True))


class FakeGpu:
    """Clocks that tell the calls of a step, in seconds."""

    def own_time(self, step):
        step()
        return 2.0

    def back_to_back(self, step):
        return 3.0

    def host_time(self, step):
        return 0.5


def test_gpu_rows_have_own_replayed_back_to_back_and_host_times(monkeypatch):
    monkeypatch.setattr(measure.gpu, "warm", lambda step: step)

    def captured(step):
        if "scaled_step" in step.__qualname__:
            raise RuntimeError("it synchronises")
        return step

    monkeypatch.setattr(measure.gpu, "captured", captured)
    recipes = command.select("3x5", RECIPES, ["fused"])
    found = Found(bandwidth=1e9)
    measure._time_on_gpu(found, recipes, [(5,)] * 3, make_grads([(5,)] * 3), FakeGpu(), rounds=4, report=None)
    rows = {row.recipe: row for row in rows_of("3x5", [(5,)] * 3, "float32", recipes, [], found)}
    fused = rows["torch fused + clip"]
    assert (fused.seconds, fused.replay_seconds, fused.call_seconds, len(fused.samples)) == (2.0, 2.0, 3.0, 4)
    assert fused.host_seconds == 0.5
    assert fused.gradops_speedup == 1.0
    scaled = rows["torch fused + GradScaler + clip"]
    assert (scaled.replay_seconds, scaled.uncaptured) == (None, "it synchronises")


def test_a_recipe_that_fails_leaves_the_others_standing():
    def fail(recipe, step, params):
        raise RuntimeError("no such device\ndetails")

    steps, failed = measure.build_all(RECIPES[:1], [(3,)], make_grads([(3,)]), fail)
    assert (steps, failed) == ({}, {RECIPES[0].name: "no such device"})
    steps, failed = measure.build_all(RECIPES[:1], [(3,)], make_grads([(3,)]), lambda recipe, step, params: step)
    assert (list(steps), failed) == ([RECIPES[0].name], {})


def test_threads_are_set_and_a_wrong_number_is_refused(tmp_path):
    before = torch.get_num_threads()
    document = bench(tmp_path, "--model", "2x64", "--recipes", "gradops", "--threads", "1")
    torch.set_num_threads(before)
    assert document["machine"]["threads"] == 1
    with pytest.raises(SystemExit, match="--threads must be at least 1, got 0"):
        main(["bench", "--threads", "0"])
