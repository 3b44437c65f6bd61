"""How `gradops._C` is compiled against the torch that is installed.

setup.py, the tests and `gradops build` run this file by its path: importing it would import gradops, and with it the
very extension that is to be built. So it imports nothing of gradops.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path
from typing import Any

import torch
from setuptools import Extension, setup
from setuptools.errors import BaseError
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension

_PACKAGE = Path(__file__).resolve().parents[1]
# csrc lies beside the package in a working tree and inside it where it was installed.
ROOT = _PACKAGE if (_PACKAGE / "csrc").is_dir() else _PACKAGE.parent

CXX_FLAGS = [
    "-O3",
    "-g0",
    "-std=c++20",
    # The same bits for every vector width: a multiply and an add are two roundings everywhere, or nowhere.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    # Or clearing a kernel's lanes becomes a `rep stos`, which takes longer than a small tensor.
    "-fno-tree-loop-distribute-patterns",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
NVCC_FLAGS = ["-O3", "-std=c++20", "-fmad=false"]
# A100, H100 and H200, B200, RTX 50; with code that later GPUs' drivers compile.
DEFAULT_ARCHITECTURES = "8.0;9.0;10.0;12.0+PTX"
CPU_SOURCES = ("csrc/*.cpp", "csrc/host/**/*.cpp", "csrc/cpu/**/*.cpp")
HOST_OF_CUDA = ("csrc/cuda/host/**/*.cpp",)
KERNELS_OF_CUDA = ("csrc/cuda/**/*.cu",)
SANITIZERS = {"address", "undefined", "thread"}
# For the compiler only: linking with it could bring in a second libgomp beside the one torch has loaded, whose thread
# count torch.set_num_threads would not reach.
OPENMP = ["-fopenmp"] if sys.platform.startswith("linux") else []
WITHOUT = "without native code, steps run in Triton on GPUs and in torch's operations elsewhere"


def sources(*patterns: str) -> list[str]:
    """Files below ROOT that match, sorted and relative to it (setuptools refuses absolute ones)."""
    return sorted(path for pattern in patterns for path in glob(pattern, root_dir=ROOT, recursive=True))


def sanitize_flags(names: str) -> list[str]:
    """Flags for GRADOPS_SANITIZE, a comma-separated list such as "address,undefined"; none for an empty one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - SANITIZERS):
        sys.exit(f"GRADOPS_SANITIZE must name some of {sorted(SANITIZERS)}, got {unknown}")
    if not wanted:
        return []
    # -O1 overrides -O3: the checks make optimised code take minutes to compile.
    return [f"-fsanitize={','.join(wanted)}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]


def compiler() -> str:
    """The C++ compiler that torch compiles extensions with."""
    return os.environ.get("CXX", "c++")


def missing_for_cpu() -> str:
    """What compiling C++ lacks on this machine, and which package has it; empty when nothing."""
    command = [*compiler().split(), "-std=c++20", *OPENMP, "-fsyntax-only", "-x", "c++", "-"]
    if shutil.which(command[0]) is None:
        return f"a C++ compiler ({command[0]}); Debian and Ubuntu: apt-get install g++"
    command.insert(1, f"-I{sysconfig.get_path('include')}")
    text = "#include <concepts>\n#include <Python.h>\n"
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    if "Python.h" in done.stderr:
        return "Python's headers (Python.h); Debian and Ubuntu: apt-get install python3-dev"
    first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    return f"a C++ compiler that knows C++20, such as g++ 10 or newer; {compiler()} says: {first}"


def _nvcc() -> Path | None:
    nvcc = Path(CUDA_HOME) / "bin" / "nvcc" if CUDA_HOME is not None else None
    return nvcc if nvcc is not None and os.access(nvcc, os.X_OK) else None


def _release(nvcc: Path) -> str:
    """The release of a toolkit, such as "13.0"; empty where nvcc does not say."""
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"release (\d+\.\d+)", done.stdout)
    return found.group(1) if found else ""


def _lacks_header(nvcc: Path) -> bool:
    command = [str(nvcc), "-E", "-x", "cu", "-"]
    done = subprocess.run(command, input="#include <cuda_fp16.h>\n", capture_output=True, text=True, check=False)
    return done.returncode != 0


def missing_for_cuda() -> list[str]:
    """What stands between this machine and the CUDA backend, as short phrases; empty when nothing does."""
    nvcc, built_for = _nvcc(), torch.version.cuda
    missing = [] if sources(*KERNELS_OF_CUDA) else ["CUDA sources in csrc/cuda"]
    if built_for is None:
        missing.append(f"a CUDA build of torch (this one is {torch.__version__})")
    if nvcc is None:
        wanted = f" of CUDA {built_for}" if built_for else ""
        return [*missing, f"nvcc{wanted} (set CUDA_HOME or put it on PATH)"]
    release = _release(nvcc)
    if built_for and release and release.split(".")[0] != built_for.split(".")[0]:
        missing.append(f"nvcc of CUDA {built_for.split('.')[0]}, for which this torch was built ({nvcc} is {release})")
    elif _lacks_header(nvcc):
        missing.append(f"the CUDA toolkit's headers (cuda_runtime.h and cuda_fp16.h, which {nvcc} does not find)")
    return missing


def wants_cuda(override: str) -> bool:
    """Whether CUDA sources are built: when everything is there, unless GRADOPS_CUDA says otherwise.

    Args:
        override: the value of GRADOPS_CUDA: "", "0" or "1".
    """
    if override not in ("", "0", "1"):
        sys.exit(f"GRADOPS_CUDA must be 0 or 1, got {override!r}")
    if override == "0":
        return False
    missing = "; ".join(missing_for_cuda())
    if override == "1" and missing:
        sys.exit(f"GRADOPS_CUDA=1, but the CUDA backend cannot be built here; missing: {missing}")
    if missing and torch.version.cuda is not None:
        print(f"gradops: GPUs are left to Triton; native CUDA code needs {missing}", file=sys.stderr, flush=True)
    return not missing


def choose_architectures(environ: Any) -> None:
    """Sets TORCH_CUDA_ARCH_LIST where the user has not: the present GPU's, or else DEFAULT_ARCHITECTURES."""
    if not environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        environ["TORCH_CUDA_ARCH_LIST"] = DEFAULT_ARCHITECTURES


def cudart_folders() -> list[str]:
    """Where the toolkit has its libraries; CUDA_HOME may be a place from which nvcc is only a link."""
    command = [str(_nvcc()), "--dryrun", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return re.findall(r'"-L([^"]+)"', said)


def extension(environ: Any) -> Extension:
    """The one extension, `gradops._C`, as `environ` asks for it; ends the process where it cannot be compiled here."""
    sanitize = sanitize_flags(environ.get("GRADOPS_SANITIZE", ""))
    if missing := missing_for_cpu():
        sys.exit(f"gradops' native code cannot be compiled here; missing: {missing}; {WITHOUT}")
    cuda = wants_cuda(environ.get("GRADOPS_CUDA", ""))
    if cuda:
        choose_architectures(environ)
    major = str(torch.version.cuda).split(".")[0]
    ext = CppExtension(
        "gradops._C",
        sources(*CPU_SOURCES, *(HOST_OF_CUDA + KERNELS_OF_CUDA if cuda else ())),
        # Headers count as sources when setuptools asks whether anything is newer; ninja then finds out what.
        depends=[os.path.relpath(__file__, ROOT), *sources("csrc/**/*.h", "csrc/**/*.cuh")],
        define_macros=[("GRADOPS_WITH_CUDA", major)] if cuda else [],
        libraries=["cudart"] if cuda else [],
        library_dirs=cudart_folders() if cuda else [],
        extra_link_args=sanitize,
    )
    # As system headers, torch's are not warned about. CUDA sources include none of them.
    system = [f"-isystem{path}" for path in ext.include_dirs if path != "/usr/include"]
    ext.include_dirs = [str(ROOT / "csrc")]
    ext.extra_compile_args = {"cxx": CXX_FLAGS + OPENMP + sanitize + system, "nvcc": NVCC_FLAGS}
    return ext


def build_command() -> type[BuildExtension]:
    """torch's build_ext with its object files kept in build/ for the next call; pip would use a temporary folder."""

    class Build(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            kind = "sanitize" if os.environ.get("GRADOPS_SANITIZE") else "plain"
            python = f"cp{sys.version_info.major}{sys.version_info.minor}"
            self.build_temp = str(Path("build", f"{kind}-{python}-torch{torch.__version__}"))

        def run(self) -> None:
            try:
                super().run()
            except (BaseError, RuntimeError, OSError) as error:  # torch's and setuptools' word for what was printed
                sys.exit(f"gradops' native code was not compiled: {error}; {WITHOUT}")

    return Build


def compile_into(folder: Path) -> None:
    """Compiles the extension into folder/gradops; object files go to folder/objects."""
    os.chdir(ROOT)
    ext = extension(os.environ)
    print(f"[0/{len(ext.sources)}] {compiler()}", flush=True)

    command: Any = build_command()

    class Build(command):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = str(folder / "objects")

    arguments = ["build_ext", "--build-lib", str(folder)]
    setup(name="gradops", ext_modules=[ext], cmdclass={"build_ext": Build}, script_args=arguments)


if __name__ == "__main__":
    compile_into(Path(sys.argv[1]).resolve())
