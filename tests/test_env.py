"""`python -m gradops env`: the text people paste into a bug report."""

import subprocess
import sys

import pytest
import torch

from gradops import env


def test_report_fits_80_columns_and_names_versions_and_every_backend():
    report = env.report()
    assert max(map(len, report.splitlines())) <= 80
    for word in ("gradops", torch.__version__, "CPU native", "CUDA native", "Triton", "nvcc", "threads"):
        assert word in report


def test_cpu_backend_names_the_vector_width_chosen_at_run_time():
    assert env.backends()["CPU native"] in {f"usable, {width} code" for width in ("avx512", "avx2", "baseline")}


def test_backend_that_is_not_usable_says_why():
    assert env.backends()["Triton"].startswith("not built: ")


def test_extension_that_does_not_load_is_reported_and_not_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradops._C", None)
    extension, reason = env.load_extension()
    assert extension is None
    assert "another torch" in reason
    assert "another torch" in env.report().replace("\n" + " " * 16, " ")


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
    assert all(name in done.stdout for name in ("env", "demo", "bench", "profile"))
