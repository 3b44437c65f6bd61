"""Builds kernel sources for the emulator (README.md) and runs them from Python."""

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "emulation"
RUNTIME = sorted(HERE.glob("*.cpp"))
FLAGS = ["-std=c++20", "-O1", "-fPIC", "-fno-gnu-unique", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"]
HEADERS = ("*.h", "*.cuh", "*.cu")
SANITIZERS = {"libasan": "address,undefined", "libtsan": "thread"}


@dataclass
class Traffic:
    """What a launch did to the arrays of one name; bytes leave out atomics and polls, distinct ones repetitions."""

    loads: int = 0
    stores: int = 0
    load_bytes: int = 0
    store_bytes: int = 0
    distinct_load_bytes: int = 0
    distinct_store_bytes: int = 0
    atomics: int = 0
    polls: int = 0


@dataclass
class Report:
    """What one launch did."""

    barriers: int
    grid_barriers: int
    warp_operations: int
    fences: int
    switches: int
    faults: list[str]
    traffic: dict[str, Traffic]

    def __post_init__(self):
        self.traffic = {name: Traffic(**traffic) for name, traffic in self.traffic.items()}


def cuda_include():
    """The folder of the toolkit's headers, or None: of the toolkit itself, or of the package that torch brings."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    try:
        import nvidia

        roots += [Path(folder) / "cu13" for folder in nvidia.__path__]
    except ImportError:
        pass
    folders = [Path(root) / "include" for root in roots if root]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").exists()), None)


def _make(target, command):
    """Runs `command`, which makes a file, unless `target` is there: its name holds the hash of all it is made from."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(f".{os.getpid()}")
    command = [str(word) for word in [*command, "-o", partial]]
    # The compiler itself is not to run under a sanitizer.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    partial.rename(target)  # whole or not there: test processes build at the same time
    return target


def _hash(words, files):
    content = hashlib.sha256(repr(words).encode())
    for path in files:
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def _object(source, flags, sanitize):
    """Compiles one source. What it includes is taken to lie in its own folder and in those of the -I flags."""
    checks = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all"] if sanitize else []
    if source in RUNTIME:
        # ThreadSanitizer learns of the runtime's barriers, and must not see how they are made.
        checks = ["-DEMU_TSAN"] if sanitize == "thread" else checks
        flags = [
            *FLAGS,
            *checks,
            *(flag for flag in flags if flag.startswith("-DEMU_")),
            "-O2",
            f"-isystem{cuda_include()}",
        ]
    else:
        flags = [*FLAGS, *checks, "-g", f"-I{HERE}", f"-isystem{cuda_include()}", "-DGRADOPS_EMULATE", *flags]
    folders = {source.parent, *(Path(flag[2:]).resolve() for flag in flags if flag.startswith("-I"))}
    headers = sorted(path for folder in folders for pattern in HEADERS for path in folder.rglob(pattern))
    target = BUILD / f"{source.stem}-{_hash(flags, [source, *headers])}.o"
    return _make(target, ["g++", *flags, "-x", "c++", "-c", source])


def runtime(sanitize):
    """The emulator's own objects, for others to link."""
    return [str(_object(source, [], sanitize)) for source in RUNTIME]


def _build(sources, flags, sanitize, kind):
    sources = [*(Path(source).resolve() for source in sources), *RUNTIME]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: _object(source, flags, sanitize), sources))
    link = [*kind, *([f"-fsanitize={sanitize}"] if sanitize else [])]
    target = BUILD / f"{sources[0].stem}-{_hash(link, objects)}{'.so' if kind else ''}"
    return _make(target, ["g++", *link, *objects])


def preloaded():
    """The sanitizers whose libraries this process began with, which code that it loads can then have; or None."""
    libraries = os.environ.get("LD_PRELOAD", "")
    return next((kind for name, kind in SANITIZERS.items() if name in libraries), None)


def load(sources, flags=()):
    """The shared library of `sources`, in this process, with the sanitizers that are `preloaded`.

    Args:
        sources: kernel and host sources, whose `extern "C"` functions the library has.
        flags: for the compiler. Folders after -I are searched for changed headers.
    """
    return opened(_build(sources, list(flags), preloaded(), ["-shared"]))


def opened(path):
    """The library at `path`, which has the emulator in it."""
    lib = ctypes.CDLL(str(path))
    lib.emu_watch.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    lib.emu_set_seed.argtypes = [ctypes.c_uint64]
    lib.emu_take_reports.restype = ctypes.c_char_p
    return lib


def program(sources, flags=(), sanitize=None):
    """As `load`, but the path of an executable, and with what `sanitize` says, as in -fsanitize=."""
    return _build(sources, list(flags), sanitize, [])


def parse(text):
    return Report(**json.loads(text))


class read_only:  # noqa: N801
    """Marks an array of `watching` that no kernel may store to."""

    def __init__(self, array):
        self.array = array


@contextmanager
def watching(lib, seed=0, **arrays):
    """Lets kernels of `lib` touch `arrays` and nothing else; yields a list that holds a Report per launch in the end.

    Args:
        seed: for `emu::session_seed()`.
        arrays: by name, a numpy array, `read_only` of one, or a list of these, whose traffic is added up.
    """
    lib.emu_set_seed(seed)
    for name, value in arrays.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            array = item.array if isinstance(item, read_only) else item
            writable = not isinstance(item, read_only)
            lib.emu_watch(name.encode(), array.ctypes.data, array.nbytes, array.itemsize, writable)
    lib.emu_take_reports()
    launches = []
    try:
        yield launches
    finally:
        launches += [Report(**report) for report in json.loads(lib.emu_take_reports())]
        lib.emu_unwatch_all()
