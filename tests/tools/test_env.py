"""`python -m gradops env`: the text people paste into a bug report."""

import subprocess
import sys

import pytest
import torch
from cases import needs_native

from gradops import env
from gradops.backends import choose


def test_report_fits_80_columns_and_names_versions_and_every_backend():
    report = env.report()
    assert max(map(len, report.splitlines())) <= 80
    for word in ("gradops", torch.__version__, "CPU native", "CUDA native", "Triton", "nvcc", "threads"):
        assert word in report


@needs_native
def test_cpu_backend_names_the_vector_width_chosen_at_run_time():
    assert env.states()["CPU native"] in {f"usable, {width} code" for width in ("avx512", "avx2", "baseline")}


def test_backend_that_is_not_usable_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    assert "not usable: torch finds no GPU" in env.states()["Triton"]
    monkeypatch.setattr(choose, "missing", lambda name, device: "" if name == "torch" else f"no {name} for {device}")
    assert env.states()["CUDA native"] == "not built: no native for cuda"
    assert env.states()["Triton"] == "not usable: no triton for cuda"


@needs_native
def test_what_is_chosen_is_named_with_the_reason(monkeypatch):
    assert env.states()["chosen"].startswith("cpu native")
    monkeypatch.setattr(choose.extension, "missing_for", lambda device_type: "a reason")
    assert env.states()["chosen"].startswith("cpu torch (a reason")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("sys.modules['gradops._C'] = None", "native code is blocked in sys.modules"),
        ("break_it()", "native code does not load (undefined symbol): run gradops build"),
    ],
)
def test_extension_that_does_not_load_is_reported_and_not_raised(how, message):
    code = f"""
import sys, importlib.abc

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "gradops._C":
            raise ImportError("undefined symbol")

def break_it():
    sys.meta_path.insert(0, Broken())

{how}
from gradops import AdamW, env
print(env.report())
import torch
param = torch.zeros(2, requires_grad=True)
param.grad = torch.ones(2)
AdamW([param]).step()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = " ".join(done.stdout.split())
    assert message in said
    assert "cpu torch" in said
    assert message in done.stderr
    assert "until then steps run in torch's own operations" in done.stderr


def test_thread_count_is_torchs(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert env.facts()["threads"].startswith("7 ")


def test_nvcc_absent_is_said(monkeypatch):
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", "")
    assert env.nvcc_version() == "not found"


def test_command_prints_plain_text_when_piped():
    done = subprocess.run([sys.executable, "-m", "gradops", "env"], capture_output=True, text=True, check=True)
    assert "\x1b" not in done.stdout
    assert "CPU native" in done.stdout


@pytest.mark.parametrize(("name", "extra"), [("demo", "demo"), ("bench", "report"), ("profile", "report")])
def test_command_without_its_extra_names_the_extra(name, extra):
    code = f"import sys; sys.modules['rich'] = None; from gradops.__main__ import main; main(['{name}'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install 'gradops[{extra}]'" in done.stderr


def test_help_lists_every_command_without_what_it_needs():
    code = "import sys; sys.modules['rich'] = None; from gradops.__main__ import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("env", "build", "demo", "bench", "profile"))
