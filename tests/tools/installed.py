"""gradops as `pip install` leaves it, without native code: not the working tree, not editable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def sources(folder):
    """A copy of what the working tree has for a build, without csrc; links stay links."""
    source = folder / "source"
    (source / "docs").mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    shutil.copy(ROOT / "docs" / "exploding-gradients.md", source / "docs")
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "gradops", source / "gradops", ignore=ignored, symlinks=True)
    return source


def install(folder):
    """Installs a copy of the working tree into a folder, with no network; gives the folder that is on the path then."""
    source, target = sources(folder), folder / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, str(source)]
    subprocess.run(command, env={**os.environ, "GRADOPS_NATIVE": "0"}, check=True)
    return target


def environment(site):
    """Environment variables with which Python, mypy and pyright find that gradops first."""
    return {**os.environ, "PYTHONPATH": str(site)}
