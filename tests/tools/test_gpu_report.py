"""The GPU kit without a GPU: commands as they would be run, recorded output, failures, resumption, and the pages."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import gpu_report_recorded as recorded
import pytest
import torch
from rules import CLASSES, TABLES

import gradops
from benchmarks import gpu_tables, tables
from benchmarks.gpu_report import __main__ as kit
from benchmarks.gpu_report import build, dram, resnet50, right, rules, said, sanitized_rules, sanitizer, times, training
from benchmarks.gpu_report.runner import ROOT, RefusedError, Target, shown
from gradops.bench import command as bench_command
from gradops.bench.forms import TRITON, TWO_LAUNCHES, find_forms
from gradops.bench.libraries import LIBRARIES
from gradops.bench.models import shapes
from gradops.bench.optimizers import subject
from gradops.bench.recipes import RECIPES, Recipe


@pytest.fixture
def gpu(tmp_path):
    return Target("cuda", tmp_path)


@pytest.fixture
def rehearsal(tmp_path):
    return Target("cpu", tmp_path)


def by_part(stage, target):
    commands = {command.part: command for command in stage.commands(target)}
    assert len(commands) == len(stage.commands(target))
    return commands


def python(code):
    return (sys.executable, "-c", code)


def test_recorded_commands_have_no_path_of_the_machine(gpu):
    for stage in kit.STAGES.values():
        for command in stage.commands(Target("cuda", ROOT / "build" / "gpu-report")):
            assert not re.search(r"(?<![\w.])/", shown(command)), shown(command)


def test_stages_are_eight_in_their_order():
    names = ["build", "right", "rules", "bytes", "time", "training", "sanitizer", "sanitized_rules"]
    assert list(kit.STAGES) == names
    assert kit.STAGE_SECONDS <= 480


def test_what_is_run_exists(gpu, rehearsal):
    for stage in kit.STAGES.values():
        for target in (gpu, rehearsal):
            for command in stage.commands(target):
                words = command.argv
                assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))
                modules = [words[at + 1] for at, word in enumerate(words) if word == "-m" and "." in words[at + 1]]
                assert all((ROOT / (module.replace(".", "/") + ".py")).is_file() for module in modules)


def test_a_rehearsal_needs_neither_gpu_nor_tools(rehearsal):
    for stage in kit.STAGES.values():
        for command in stage.commands(rehearsal):
            assert command.needs is None
            assert "cuda" not in " ".join(command.argv)


def test_tests_run_with_every_backend_and_no_plugin(gpu):
    commands = by_part(right, gpu)
    assert len(commands) == 1 + 3 * len(right.FILES)
    for command in commands.values():
        assert "addopts=" in command.argv
    chosen = {part: command.argv[command.argv.index("-k") + 1] for part, command in commands.items() if ":" in part}
    assert chosen["native: clip"] == chosen["two launches: clip"] == "native-cuda"
    assert chosen["triton: clip"] == "triton-cuda"
    assert "benchmarks.gpu_report.two_launches" in commands["two launches: clip"].argv
    assert "benchmarks.gpu_report.two_launches" not in commands["native: clip"].argv


def test_every_rules_steps_run_with_every_backend(gpu):
    """Triton's in parts, of which each class has one."""
    commands = by_part(rules, gpu)
    assert len(commands) == len(rules.CLASSES) + 2 + 3 * len(rules.FILES)
    chosen = [command.argv[command.argv.index("-k") + 1] for part, command in commands.items() if "steps of" in part]
    for cls in CLASSES:
        assert any(words in f"test_steps[triton-cuda-{cls.__name__}]" for words in chosen)
    assert {"native: steps", "two launches: steps", "triton: steps of Adam", "triton: optimizers"} <= set(commands)


def test_the_sanitizer_watches_every_rule_with_all_its_moments_and_an_average(gpu):
    assert set(by_part(sanitized_rules, gpu)) == set(by_part(sanitizer, gpu))
    made = [getattr(gradops, name)([torch.zeros(1)], **options) for name, options in sanitized_rules.OPTIONS.items()]
    assert {optimizer.rule.name for optimizer in made} == TABLES.keys()
    for optimizer in made:
        assert optimizer.rule.moments_of(optimizer.param_groups[0]) == optimizer.rule.moment_names


def test_the_tests_that_run_on_a_gpu_are_those_that_run_in_the_emulator():
    """The operators' tests make CPU tensors, which the emulator takes; test_same_result.py has them on a GPU. Names and
    checkpoints of shards need no device, timm's optimizers need timm, processes of gloo have no GPU, and what the
    emulator watches no GPU shows.
    """
    command = ["make", "-s", "--eval", "shown: ; @echo $(EMULATED_TESTS) $(EMULATED_REST)", "shown"]
    places = kit.subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    found = {path for place in places for path in [ROOT / place, *(ROOT / place).glob("test_*.py")] if path.is_file()}
    emulated = {str(path.relative_to(ROOT)) for path in found if path.parent.name not in ("distributed", "extension")}
    elsewhere = ["step/test_activation_stats", "step/test_ops", "tools/test_gpu_report_steps"]
    elsewhere += [f"rules/test_{name}" for name in ("distributed_checkpoints", "names", "timm")]
    on_a_gpu = {*right.FILES, *rules.FILES, rules.STEPS}
    assert emulated - {f"tests/{name}.py" for name in elsewhere} <= on_a_gpu


def test_two_launches_are_asked_for_when_the_plugin_is_loaded(monkeypatch):
    said_to = []
    monkeypatch.setattr("gradops._C", SimpleNamespace(allow_one_launch=said_to.append), raising=False)
    monkeypatch.delitem(sys.modules, "benchmarks.gpu_report.two_launches", raising=False)
    import benchmarks.gpu_report.two_launches  # noqa: F401

    assert said_to == [False]


def test_every_model_case_and_tool_is_asked_for(gpu):
    assert set(by_part(dram, gpu)) == {"resnet18", "resnet50", "resnet152", "vit_b_16", "convnext_tiny"}
    ncu = by_part(dram, gpu)["resnet50"]
    assert ncu.needs == "ncu"
    assert ncu.argv[:2] == ("ncu", "--csv")
    assert "dram__bytes_read.sum,dram__bytes_write.sum" in ncu.argv
    assert {"10x64", "161x64", "1000x64", "10000x64", "resnet50 compiled"} <= set(by_part(times, gpu))
    assert all(shapes(command.argv[command.argv.index("--model") + 1]) for command in times.commands(gpu))
    assert set(by_part(training, gpu)) == {"fp16", "bf16"}
    assert set(by_part(sanitizer, gpu)) == {"memcheck", "racecheck", "synccheck", "initcheck"}
    for tool, command in by_part(sanitizer, gpu).items():
        assert ("--kernel-name" in command.argv) == (tool != "initcheck")


def test_every_form_and_library_is_timed(monkeypatch):
    monkeypatch.setattr("gradops.backends.choose.missing", lambda name, device: "")
    forms, absent = find_forms("cuda", subject("AdamW"))
    assert ([form.name for form in forms], absent) == ([TWO_LAUNCHES, TRITON], {})
    libraries = [
        Recipe(f"{library.name} + clip", None, None, "gradops") for library in LIBRARIES if "cuda" in library.devices
    ]
    chosen = {recipe.name for recipe in bench_command.select("resnet50", [*RECIPES, *forms, *libraries], times.WORDS)}
    assert chosen >= {form.name for form in forms} | {library.name for library in libraries}
    assert not [name for name in chosen if "loop" in name or "compile" in name]
    for library in ("apex", "TransformerEngine", "DeepSpeed", "FlashOptim", "optimi"):
        assert any(name.startswith(library) for name in chosen)


def test_forms_that_cannot_run_are_named_with_the_reason(monkeypatch):
    monkeypatch.setattr("gradops.backends.choose.missing", lambda name, device: f"no {name}")
    assert find_forms("cuda", subject("AdamW")) == ([], {TWO_LAUNCHES: "no native", TRITON: "no triton"})
    assert find_forms("cpu", subject("AdamW")) == ([], {})


def test_the_network_has_the_parameters_of_a_resnet50():
    with torch.device("meta"):
        assert [tuple(param.shape) for param in resnet50.resnet50().parameters()] == shapes("resnet50")


def test_the_training_is_in_channels_last():
    model, optimizer, [(images, labels)], loss = resnet50.make_rehearsal()
    for tensor in (images, model[0].weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert loss(model(images), labels).isfinite()
    assert optimizer.defaults["fused"]


# What programs print.


def test_ncu_bytes_are_those_of_the_step_and_the_writes_that_follow_it():
    found = dram.read(0, recorded.NCU)
    assert (round(found["read"], 2), round(found["written"], 2)) == (16.0, 12.0)
    assert found["estimate"] == 28.004
    assert ["one_pass_step_kernel" in name for name in found["kernels"]] == [True]


def test_counters_that_are_refused_are_said(tmp_path):
    with pytest.raises(RefusedError, match="ERR_NVGPUCTRPERM: this machine lets only its administrator"):
        dram.read(1, recorded.NCU_REFUSED)


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (
            recorded.NCU.replace('"byte","byte"', '"Mbyte","byte"'),
            r"ncu's dram__bytes_read\.sum is in Mbyte, not in byte",
        ),
        ('{"params": 1}\n==PROF== Disconnected', "ncu printed no table"),
        (recorded.NCU.replace('{"params"', '"params"'), "no line of the output is JSON"),
        (
            "\n".join(recorded.NCU.splitlines()[:-1]),
            "ncu must see a step and the read after it, it saw void gradops::cuda::one_pass",
        ),
    ],
)
def test_other_output_of_ncu_is_a_failure(output, complaint):
    with pytest.raises(ValueError, match=complaint):
        dram.read(0, output)


def test_estimate_is_that_of_the_page():
    page = (ROOT / "docs" / "l2-estimate.md").read_text()
    for model, chip, limits in (
        ("resnet18", "H100", (50 << 20, 132, 232_448)),
        ("resnet50", "A100", (40 << 20, 108, 166_912)),
        ("resnet50", "RTX 5090", (96 << 20, 170, 101_376)),
    ):
        line = next(line for line in page.splitlines() if line.startswith(f"| {model} |") and f"| {chip} |" in line)
        assert f"{dram.estimate(model, *limits):.2f}" == line.split("|")[-2].strip()


def test_junit_counts_and_names_what_failed(tmp_path):
    found = said.junit(recorded.JUNIT)
    assert found == {"passed": 1, "skipped": 1, "failed": ["tests.test_decide::test_b[native-cuda]"]}
    report = tmp_path / "report.xml"
    report.write_text(recorded.JUNIT)
    with pytest.raises(ValueError, match=r"failed: tests\.test_decide::test_b\[native-cuda\]"):
        right.reader(report)(1, "")
    assert not report.exists()
    report.write_text('<testsuites><testsuite name="pytest" tests="0" /></testsuites>')
    with pytest.raises(ValueError, match="no test ran"):
        right.reader(report)(5, "")


@pytest.mark.parametrize("tool", recorded.SANITIZED)
def test_sanitizers_summary_is_kept(tool):
    assert "0 " in sanitizer.read(0, recorded.SANITIZED[tool])["summary"]


def test_a_race_an_error_and_no_summary_are_failures():
    with pytest.raises(ValueError, match=r"RACECHECK SUMMARY: 1 hazard displayed \(1 error, 0 warnings\)"):
        sanitizer.read(7, recorded.RACE)
    with pytest.raises(ValueError, match="ERROR SUMMARY: 0 errors"):
        sanitizer.read(1, recorded.SANITIZED["memcheck"])  # the program itself failed
    with pytest.raises(ValueError, match="no summary"):
        sanitizer.read(0, "========= COMPUTE-SANITIZER\n")


def test_native_code_that_is_not_usable_is_a_failure():
    assert build.read_env(0, f"text\n{json.dumps(recorded.ENV)}\n") == recorded.ENV
    broken = {**recorded.ENV, "env": {**recorded.ENV["env"], "CUDA native": "not built: no nvcc"}}
    with pytest.raises(ValueError, match="native code cannot be used: not built: no nvcc"):
        build.read_env(0, json.dumps(broken))


def test_times_need_our_own(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"rows": recorded.TIMES["resnet50"]}))
    assert times.reader(path)(0, "") == recorded.TIMES["resnet50"]
    path.write_text(json.dumps({"rows": [recorded.row("gradops", None, failed="no launch")]}))
    with pytest.raises(ValueError, match="gradops: no launch"):
        times.reader(path)(0, "")
    with pytest.raises(ValueError, match="gradops bench ended with 1"):
        times.reader(path)(1, "")


def test_of_a_profile_the_steps_own_records_are_left_out(tmp_path):
    path = tmp_path / "report.json"
    loop = {"seconds": [1.0], "records": [{"skipped": True}, {"skipped": False}]}
    path.write_text(json.dumps({"results": [{"loops": {"native": loop}}]}))
    assert training.reader(path)(0, "") == {"loops": {"native": {"seconds": [1.0], "skipped": 1}}}
    with pytest.raises(ValueError, match="gradops profile ended with 1"):
        training.reader(path)(1, "")


# The pages.


def entry(found, status="ok", said=""):
    return {"status": status, "said": said, "found": found, "commit": "abc", "when": "2026-12-01T10:00:00+00:00"}


@pytest.fixture
def document():
    tests = {"passed": 10, "skipped": 1, "failed": []}
    refused = entry(None, "refused", "ERR_NVGPUCTRPERM: not allowed")
    return {
        "stages": {
            "build": {"env": entry(recorded.ENV)},
            "right": {
                "native: clip": entry(tests),
                "native: stats": entry(tests),
                "triton: clip": entry(None, "failed", "failed: tests.test_clip::test_x; its last lines:\nE"),
            },
            "rules": {"native: steps": entry(tests), "triton: steps of SGD": entry(None, "failed", "no")},
            "bytes": {"resnet18": entry(dram.read(0, recorded.NCU)), "resnet50": refused, "vit_b_16": refused},
            "time": {case: entry(rows) for case, rows in recorded.TIMES.items()},
            "training": {"fp16": entry(recorded.TRAINING)},
            "sanitizer": {"memcheck": entry({"summary": "ERROR SUMMARY: 0 errors"})},
            "sanitized_rules": {"memcheck": entry({"summary": "ERROR SUMMARY: 0 errors"})},
        }
    }


def test_blocks_say_that_nothing_was_taken():
    for name, make in gpu_tables.FIGURES.items():
        assert "ot yet taken on a GPU." in make({}), name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpu_headline", "On NVIDIA H100 80GB HBM3 what follows the backward pass of a ResNet-50 takes 220 µs (2.25x "),
        ("gpu_machine", "Taken on 2026-12-01 at commit abc with `make gpu-report` on NVIDIA H100 80GB HBM3, CUDA 13.0"),
        ("gpu_right", "| native | 30 | 3 |"),
        ("gpu_right", "Without a result: triton: steps of SGD (failed: no)."),
        ("gpu_right", "Without a result: triton: clip (failed: failed: tests.test_clip::test_x; its last lines:)."),
        ("gpu_bytes", "| resnet18 | 16.00 | 12.00 | 28.00 | 28.00 |"),
        ("gpu_bytes", "Without a result: resnet50, vit_b_16 (refused: ERR_NVGPUCTRPERM: not allowed)."),
        ("gpu_models", "| gradops + loss scale | 220 µs |  | 440 µs | 10 µs |  | 1 | 0 | 0.91 |"),
        ("gpu_models", "| torch.compile + clip | 400 µs |"),
        ("gpu_tensors", "| gradops | 20 µs | 200 µs |"),
        ("gpu_training", "| fp16, gradops | 200 ms | 5 ms | 16 GiB | 1.020x (1.000 to 1.030) |"),
        ("gpu_sanitizer", "| memcheck | ERROR SUMMARY: 0 errors |"),
        ("gpu_sanitizer", "| memcheck, every rule | ERROR SUMMARY: 0 errors |"),
    ],
)
def test_blocks_come_from_the_json(document, name, expected):
    assert expected in gpu_tables.FIGURES[name](document)


def test_what_was_measured_twice_stands_once(document):
    text = gpu_tables.models(document)
    assert text.count("| gradops |") == 1
    assert "9 s" not in text
    assert "apex" not in text


def test_pages_are_those_that_the_results_give():
    """Nobody wrote a figure of the GPU by hand, or forgot to write the pages again."""
    results = tables.read_results()
    for page in tables.PAGES:
        blocks = dict(re.findall(r"<!-- bench:(gpu_\w+) -->\n\n(.*?)\n\n<!-- /bench -->", page.read_text(), re.DOTALL))
        for name, text in blocks.items():
            assert text == gpu_tables.FIGURES[name](results.gpu)


def test_no_page_says_that_no_gpu_was_seen_once_one_was():
    """Words outside the generated blocks, to be changed by hand."""
    if not tables.read_results().gpu:
        return
    words = re.compile(r"no GPU yet|not run on (a GPU|one) yet|no GPU times|nothing yet")
    assert not [page for page in (ROOT / "docs").glob("*.md") if words.search(page.read_text())]
    assert not words.search((ROOT / "README.md").read_text())


# All of it.


@pytest.mark.slow
def test_a_dry_run_of_some_stages_ends_well(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kit, "SCRATCH", ROOT / "build" / f"gpu-report-{tmp_path.name}")
    try:
        assert kit.main(["--dry-run", "--stage", "bytes", "--json", str(tmp_path / "r.json")]) == 0
        assert "gpu_bytes" in (kit.SCRATCH / "dry-run.md").read_text()
    finally:
        shutil.rmtree(kit.SCRATCH)
    printed = capsys.readouterr().out
    assert "ok  10x64" in printed
    assert json.loads((tmp_path / "r.json").read_text())["stages"]["bytes"]["10x64"]["found"]["params"] == 640


def test_an_unknown_stage_is_refused(capsys):
    with pytest.raises(SystemExit):
        kit.main(["--stage", "speed"])
    assert "invalid choice: 'speed'" in capsys.readouterr().err


def test_the_commit_has_a_plus_where_files_changed_but_not_for_what_the_kit_writes(monkeypatch, tmp_path):
    assert re.fullmatch(r"[0-9a-f]{9}\+?|unknown", kit.commit())
    monkeypatch.setattr(kit, "ROOT", tmp_path)
    assert kit.commit() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        kit.subprocess.run([*git, *words], check=True)
    (tmp_path / "page.md").touch()
    assert re.fullmatch(r"[0-9a-f]{9}", kit.commit())
    (tmp_path / "step.cu").touch()
    assert kit.commit().endswith("+")


def test_the_kit_imports_without_torch():
    """The process that stays beside every measurement must not hold the GPU."""
    code = "import sys; import benchmarks.gpu_report.__main__; sys.exit('torch' in sys.modules)"
    assert kit.subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_make_installs_nothing_for_the_report():
    makefile = (ROOT / "Makefile").read_text()
    rule = re.search(r"^gpu-report:(.*)\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert rule[1].strip() == ""
    assert rule[2] == "\t$(PYTHON) -m benchmarks.gpu_report $(ARGS)\n"
    assert Path(kit.RESULTS).parent == tables.RESULTS
