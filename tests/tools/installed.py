"""gradops as `pip install` leaves it, without native code: not the working tree, not editable."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def install(folder):
    """Installs a copy of the working tree into a folder, with no network; gives the folder that is on the path then."""
    source, target = folder / "source", folder / "site"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "gradops", source / "gradops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, str(source)]
    subprocess.run(command, env={**os.environ, "GRADOPS_NATIVE": "0"}, check=True)
    return target


def environment(site):
    """Environment variables with which Python, mypy and pyright find that gradops first."""
    return {**os.environ, "PYTHONPATH": str(site)}
