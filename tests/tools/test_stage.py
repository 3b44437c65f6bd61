"""The set-up's stages: one line each, the log kept, and shown where a stage fails."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

STAGE = Path(__file__).resolve().parents[2] / "tools" / "stage.py"
pytestmark = pytest.mark.skipif(not STAGE.exists(), reason="tools/ is in the source tree alone")


def stage(folder, program):
    command = [sys.executable, STAGE, "name", "doing it", sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_stage_is_one_line_and_its_log(tmp_path):
    done = stage(tmp_path, "import sys; print('hello'); print('there', file=sys.stderr)")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "doing it: done after 0 s\n"
    assert sorted((tmp_path / "build" / "log" / "name.log").read_text().split()) == ["hello", "there"]


def test_files_to_compile_are_counted(tmp_path):
    done = stage(tmp_path, "print('[1/45] c++ -c a.cpp', flush=True); print('[2/45] c++ -c b.cpp')")
    assert done.stdout.startswith("doing it (45 files, about ")
    assert done.stdout.count("\n") == 1


def test_a_stage_that_fails_shows_the_end_of_its_log(tmp_path):
    done = stage(tmp_path, "import sys; [print(f'line {i};') for i in range(100)]; sys.exit(3)")
    assert (done.returncode, done.stdout) == (3, "doing it: failed after 0 s\n")
    assert "line 99;" in done.stderr
    assert "line 20;" not in done.stderr
    assert done.stderr.endswith("The whole log is in build/log/name.log.\n")


def test_on_a_terminal_the_line_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    names = runpy.run_path(str(STAGE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert names["run"]("name", "doing it", [sys.executable, "-c", "print('[7/45] c++ -c a.cpp')"]) == 0
    said = capsys.readouterr().out
    assert "7 of 45" in said
    assert "c++" not in said
