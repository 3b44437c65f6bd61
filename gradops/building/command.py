"""`gradops build`: compiles the native code against the torch that is installed, into the user's cache."""

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from gradops.building import cache
from gradops.building.progress import Progress

_STEP = re.compile(r"^\[(\d+)/(\d+)\]")
_SOURCE = re.compile(r"(csrc/\S+\.(?:cpp|cu))")
_LOG = "build.log"
_RECIPE = Path(__file__).with_name("recipe.py")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("--clean", action="store_true", help="remove every build from the cache, and build nothing")


def main(args: argparse.Namespace) -> int:
    """Builds, unless that was done; or cleans."""
    try:
        where = cache.folder()
        if args.clean:
            print(f"{len(cache.clean())} builds removed from {where}")
            return 0
        return _build(where)
    except (OSError, RuntimeError) as error:
        print(f"gradops build: {error}; XDG_CACHE_HOME sets another folder", file=sys.stderr)
        return 1


def _build(where: Path) -> int:
    if importlib.util.find_spec("setuptools") is None:
        print("gradops build needs setuptools: run pip install setuptools ninja", file=sys.stderr)
        return 1
    if cache.csrc() is None:
        print("gradops build: this installation has no sources (csrc); run pip install gradops again", file=sys.stderr)
        return 1
    target = where / cache.name(toolchain())
    with cache.lock(where):
        if _holds_what_is_asked_for(target):
            print(f"built before: {target}")
            return 0
        with _terminated_as_interrupted(), cache.half_made(where) as half:
            began = time.monotonic()
            if status := _compile(half, where / _LOG):
                return status
            ready = half / "ready"
            ready.mkdir()
            for path in (half / "gradops").glob("_C*.so"):
                path.rename(ready / path.name)
            if target.exists():
                target.rename(half / "before")
            ready.rename(target)
    print(f"built in {time.monotonic() - began:.0f} s: {target}")
    return 0


def _holds_what_is_asked_for(target: Path) -> bool:
    """Whether a build is there; one without CUDA code is not, where CUDA code is demanded."""
    found = next(target.glob("_C*.so"), None)
    return found is not None and (
        os.environ.get("GRADOPS_CUDA") != "1" or (cache.built_for(found) or ("", ""))[1] != "none"
    )


def toolchain() -> str:
    """What would compile here, and what for, as a part of a file name."""
    home, cuda = os.environ.get("CUDA_HOME"), os.environ.get("GRADOPS_CUDA") != "0"
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None) if cuda else None
    parts = [_compiler()]
    if nvcc is not None:
        said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
        parts += ["nvcc", *re.findall(r"release (\S+),", said), *_architectures()]
    return re.sub(r"[^\w.+]+", "_", "_".join(filter(None, parts)))


def _architectures() -> list[str]:
    """What CUDA code would be compiled for: what the user lists, or the GPUs that are here; nothing for the default."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return listed.split(";")
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return sorted({"sm{}{}".format(*torch.cuda.get_device_capability(device)) for device in devices})


def _compiler() -> str:
    """The C++ compiler and its version; "none" where there is none."""
    command = os.environ.get("CXX", "c++").split()
    if shutil.which(command[0]) is None:
        return "none"
    done = subprocess.run([*command, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True, check=False)
    return f"{Path(command[0]).name}{done.stdout.strip()}"


def _compile(half: Path, log: Path) -> int:
    """Runs the recipe in a process of its own, shows how far it is, and keeps what it says in a log."""
    command = [sys.executable, "-u", str(_RECIPE), str(half)]
    environ = dict(os.environ)
    if hasattr(os, "sched_getaffinity"):
        environ.setdefault("MAX_JOBS", str(len(os.sched_getaffinity(0))))
    with log.open("w") as kept, Progress("gradops build") as progress, _process(command, environ) as child:
        assert child.stdout is not None
        done, total, said = 0, 0, ""
        for line in child.stdout:
            kept.write(line)
            said = line.strip() or said
            if counted := _STEP.match(line):
                done, total = int(counted[1]), max(total, int(counted[2]))
            elif " -c " in line and _SOURCE.search(line):  # without ninja, one after the other
                done += 1
            elif line.startswith("gradops: "):
                progress.say(line.rstrip())
                continue
            else:
                continue
            source = _SOURCE.search(line)
            progress.update(done, total, source[1] if source else "")
    if child.returncode:
        print(_complaint(log.read_text(), said), file=sys.stderr)
        print(f"the whole output is in {log}", file=sys.stderr)
    return child.returncode


def _complaint(log: str, last: str) -> str:
    """The compiler's first error, and the build's last word."""
    errors = [line for line in log.splitlines() if re.search(r"\b(fatal )?error:", line)]
    return "\n".join([*errors[:1], last])


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    """A process whose children, the compilers, end with us."""
    child = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield child
        child.wait()
    finally:
        if child.poll() is None:
            # Not SIGKILL: ninja must end the compilers, which it runs in process groups of their own.
            os.killpg(child.pid, signal.SIGTERM)
            child.communicate()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM and a closed terminal end a build as Ctrl-C does: with nothing left behind."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
