"""Where `gradops build` puts native code, and which of it may be loaded: one folder a build, named by what it fits."""

import contextlib
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch

from gradops._version import __version__

_PACKAGE = Path(__file__).resolve().parents[1]
_HALF = ".half-"
# csrc/module.cpp has the same words.
_BUILT_FOR = re.compile(rb"gradops was built for torch ([^\s\0]+) CUDA (\w+)")


def folder() -> Path:
    """gradops' folder in the user's cache.

    Raises:
        RuntimeError: the user has no home.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (base if base.is_absolute() else Path.home() / ".cache") / "gradops"


def csrc() -> Path | None:
    """The sources of the native code: inside the package, or beside it in a working tree."""
    return next((path for path in (_PACKAGE / "csrc", _PACKAGE.parent / "csrc") if path.is_dir()), None)


@cache
def _fits() -> str:
    """What native code must share with this gradops and this Python."""
    digest = hashlib.sha256((_PACKAGE / "building" / "recipe.py").read_bytes())
    where = csrc()
    for path in sorted(where.rglob("*.[ch]*")) if where else []:
        digest.update(path.read_bytes())
    return f"gradops{__version__}-{digest.hexdigest()[:10]}-{sysconfig.get_config_var('SOABI')}"


def name(compiler: str) -> str:
    """The name of a build's folder."""
    return f"{_fits()}-torch{torch.__version__}-{compiler}"


def built() -> list[Path]:
    """The extensions in the cache that fit this gradops and this Python, for any torch; the newest first."""
    try:
        found = [path for path in folder().glob(f"{_fits()}-torch*/_C.*") if path.suffix == ".so"]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    except (OSError, RuntimeError):
        return []


def built_for(path: Path) -> tuple[str, str] | None:
    """The versions of torch and of CUDA ("none" for none) that an extension was built for; not loaded for it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if found := _BUILT_FOR.search(content):
            return found[1].decode(), found[2].decode()
        # Builds from before those words hold torch's version as a text of its own.
        release = torch.__version__.partition("+")[0]
        return (release, "none") if content.find(f"\0{release}\0".encode()) >= 0 else None


def misfit(path: Path) -> str:
    """Why an extension must not be loaded beside this torch; empty if it may."""
    try:
        versions = built_for(path)
    except (OSError, ValueError) as error:
        return f"not readable ({error}): run gradops build"
    if versions is None:
        return "built for an unknown torch: run gradops build"
    (was, cuda), now = versions, torch.__version__
    if _minor(was) != _minor(now):
        return f"built for torch {_minor(was)}, this is {_minor(now)}: run gradops build"
    major = str(torch.version.cuda).split(".")[0]
    if cuda not in ("none", major):
        return f"built for torch with CUDA {cuda}, this is {now} with CUDA {torch.version.cuda}: run gradops build"
    return ""


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@contextlib.contextmanager
def lock(where: Path) -> Iterator[None]:
    """Lets one process at a time build or clean in a folder, which is made."""
    where.mkdir(parents=True, exist_ok=True)
    with (where / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("gradops: another process builds; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def half_made(where: Path) -> Iterator[Path]:
    """A folder to work in that nobody imports from; it is gone afterwards, and with it what a killed process left."""
    for left in where.glob(f"{_HALF}*"):
        shutil.rmtree(left, ignore_errors=True)
    path = where / f"{_HALF}{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def clean() -> list[Path]:
    """Removes every build, whatever it was for; returns what was removed."""
    if not folder().is_dir():
        return []
    with lock(folder()):
        removed = [path for path in folder().iterdir() if path.name.startswith(("gradops", _HALF))]
        for path in removed:
            shutil.rmtree(path)
    return removed
