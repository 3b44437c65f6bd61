"""What a rule calls its moments stands in its own files: everything else reads the rule."""

import re
from pathlib import Path

import pytest

from rules import CLASSES

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted({name for cls in CLASSES for name in (*cls.rule.moment_names, *cls.rule.number_names[1:])})
# Where torch's names may stand, as patterns of paths.
ALLOWED = (
    "gradops/optim/*.py",
    "gradops/**/rules/*.py",
    "csrc/**/rules/*",
    "csrc/host/update_rules.cpp",  # the list of rules
    # The public operator `adam_step_` has them for the names of its arguments.
    "gradops/ops.py",
    "csrc/ops.cpp",
    "gradops/fastai/state.py",  # fastai's Adam and its names
)


def sources():
    files = [path for folder in ("gradops", "csrc") for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if path.suffix in {".py", ".pyi", ".h", ".cpp", ".cu", ".cuh"}]


def is_allowed(path):
    allowed = {place for pattern in ALLOWED for place in ROOT.glob(pattern)}
    return path in allowed


def test_every_allowed_place_is_there():
    lone = [pattern for pattern in ALLOWED if "*" not in pattern]
    assert all((ROOT / pattern).is_file() for pattern in lone)


@pytest.mark.parametrize("name", NAMES)
def test_a_moments_name_stands_in_the_rules_files_alone(name):
    # A name that is a word of its own is looked for as a key.
    word = re.compile(rf"\b{name}s?\b" if "_" in name else rf"[\"']{name}[\"']")
    elsewhere = [path for path in sources() if not is_allowed(path) and word.search(path.read_text())]
    assert [str(path.relative_to(ROOT)) for path in elsewhere] == []
