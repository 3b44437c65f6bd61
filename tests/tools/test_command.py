"""The command line as a whole: its help, its version, and how it is called."""

import subprocess
import sys

import pytest

import gradops
from gradops.__main__ import COMMANDS, main

NAMES = ["env", *(command.name for command in COMMANDS)]


def test_alone_it_prints_its_help(capsys):
    assert main([]) == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: gradops ")
    assert all(f"    {name} " in said for name in NAMES)


def test_as_a_module_it_is_called_by_what_was_typed():
    done = subprocess.run([sys.executable, "-m", "gradops"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python -m gradops ")


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"gradops {gradops.__version__}\n"


def test_a_command_that_there_is_not_is_an_error_that_lists_those_there_are(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reprot"])
    said = capsys.readouterr().err
    assert "reprot" in said
    assert all(name in said for name in NAMES)
