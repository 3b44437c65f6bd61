"""Finds and runs the compiler and the disassembler; results are kept under build/machine_code by content."""

import fcntl
import functools
import hashlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "machine_code"
HERE = Path(__file__).resolve().parent
ARCHS = ("80", "90", "100", "120")

# Bytes of shared memory that a driver keeps of each block, from sm_80 on; the compiler counts them from sm_90 on.
RESERVED = 1024


def find_nvcc() -> str | None:
    """The nvcc that a build from here would use."""
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


def find_binary(name: str) -> str | None:
    """cuobjdump or nvdisasm: of the toolkit, else from NVIDIA's or triton's wheels."""
    packages = Path(sysconfig.get_path("purelib"))
    folders = [*packages.glob("nvidia/*/bin")]
    if (triton := find_spec("triton")) and triton.submodule_search_locations:
        folders += [Path(where) / "backends/nvidia/bin" for where in triton.submodule_search_locations]
    paths = [None, *map(str, folders)]
    return next((found for path in paths if (found := shutil.which(name, path=path))), None)


def missing() -> list[str]:
    """What reading machine code needs and this machine lacks."""
    have = {"nvcc": find_nvcc(), "nvdisasm": find_binary("nvdisasm"), "cuobjdump": find_binary("cuobjdump")}
    return [name for name, path in have.items() if path is None]


def run(*command: object) -> str:
    """Standard output of a command; raises with what it said where it failed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


@functools.cache
def nvcc_flags() -> tuple[str, ...]:
    """The flags that the extension is compiled with, and the lines that the gates need."""
    return (*runpy.run_path(str(ROOT / "gradops/building/recipe.py"), run_name="recipe")["NVCC_FLAGS"], "-lineinfo")


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


@functools.cache
def _compiler() -> str:
    return run(find_nvcc(), "--version")


def _key(source: Path, include: Path = ROOT / "csrc") -> str:
    """Changes with everything that the compiler may read."""
    headers = [path for pattern in ("*.h", "*.cuh") for path in include.rglob(pattern)]
    texts = [path.read_bytes() for path in [source, *sorted(headers)]]
    return _digest(_compiler(), nvcc_flags(), *texts)


def _kept(path: Path, *command: object) -> Path:
    """Makes a file unless it is there, one process at a time; a run that is killed leaves no half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            half = path.with_suffix(".half")
            run(*command, "-o", half)
            half.rename(path)
    return path


def compile_cubin(source: Path, arch: str, include: Path = ROOT / "csrc") -> Path:
    """The cubin of one source for one architecture, "90" for sm_90."""
    path = CACHE / f"{source.stem}-sm_{arch}-{_key(source, include)}.cubin"
    flags = [*nvcc_flags(), f"-I{include}", f"-arch=sm_{arch}", "-cubin"]
    return _kept(path, find_nvcc(), *flags, source)


def disassemble(cubin: Path) -> str:
    """Every instruction with the source lines it stems from."""
    return run(find_binary("nvdisasm"), "-c", "-gi", cubin)


@dataclass(frozen=True)
class Resources:
    """What a kernel needs to start: registers of a thread; bytes of stack and local memory of a thread; static shared
    memory of a block, without what the driver keeps for itself."""

    registers: int
    stack: int
    local: int
    shared: int


def resources(cubin: Path, arch: str) -> dict[str, Resources]:
    """Of each kernel of a cubin, by mangled name."""
    text = run(find_binary("cuobjdump"), "-res-usage", cubin)
    reserved, found = RESERVED if int(arch) >= 90 else 0, {}
    for name, line in re.findall(r"Function (\S+):\s*\n\s*(.*)", text):
        use = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
        found[name] = Resources(use["REG"], use["STACK"], use["LOCAL"], max(0, use["SHARED"] - reserved))
    return found


def extract_cubins(library: Path, folder: Path) -> list[Path]:
    """The cubins that a shared library holds; none for one without CUDA code."""
    with_code = ".nv_fatbin" in run("readelf", "-SW", library)
    if with_code:
        subprocess.run([find_binary("cuobjdump"), "-xelf", "all", library], cwd=folder, capture_output=True, check=True)
    return sorted(folder.glob("*.cubin"))


def arch_of(cubin: Path) -> str:
    """ "90" for a cubin of sm_90."""
    return re.search(r"\.target\s+sm_(\d+)", disassemble(cubin))[1]


def _program(source: Path) -> Path:
    """A C++ program of this folder; its headers are the toolkit's and the kernels'."""
    flags = ["-std=c++20", "-cudart=none", f"-I{ROOT / 'csrc'}"]
    return _kept(CACHE / f"{source.stem}-{_key(source)}", find_nvcc(), *flags, source)


@functools.cache
def launch_form(arch: str) -> dict[str, int]:
    """Threads, and bytes of shared memory, of a block of the one-launch step where it parks all it can."""
    limit = occupancy(arch, registers=32, shared=0, threads=32, dynamic_shared=0)["shared_limit"]
    return json.loads(run(_program(HERE / "launch_form.cpp"), limit))


def occupancy(arch: str, registers: int, shared: int, threads: int, dynamic_shared: int) -> dict[str, int]:
    """Blocks that fit on one multiprocessor at once, and what limits them; see occupancy.cpp."""
    program = _program(HERE / "occupancy.cpp")
    return json.loads(run(program, arch, registers, shared, threads, dynamic_shared))
