"""Builds `gradops._C` against the torch that is already installed; everything else is in pyproject.toml.

With GRADOPS_NATIVE=0 nothing is built: the package then runs in Triton or in torch's own operations.
"""

import os
import re
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

TORCH_FIRST = (
    "gradops is compiled against the torch you already have, and this build environment has none: run "
    "`pip install torch setuptools ninja` first, then `pip install --no-build-isolation .`; or build no native code: "
    "`GRADOPS_NATIVE=0 pip install .`"
)

WANTED = os.environ.get("GRADOPS_NATIVE", "")
if WANTED not in ("", "0", "1"):
    sys.exit(f"GRADOPS_NATIVE must be 0 or 1, got {WANTED!r}")
NATIVE = WANTED != "0"

if NATIVE:
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        sys.exit(TORCH_FIRST)

ROOT = Path(__file__).resolve().parent

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
HOST_OF_CUDA = ["csrc/cuda_ops.cpp", "csrc/cuda_step.cpp", "csrc/device_rows.cpp", "csrc/device_units.cpp"]
SANITIZERS = {"address", "undefined", "thread"}


def sources(*patterns):
    """Files of the repository that match, sorted, relative to its root (setuptools refuses absolute ones)."""
    return sorted(path for pattern in patterns for path in glob(pattern, root_dir=ROOT))


def sanitize_flags(names):
    """Flags for GRADOPS_SANITIZE, a comma-separated list such as "address,undefined"; none for an empty one."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - SANITIZERS):
        sys.exit(f"GRADOPS_SANITIZE must name some of {sorted(SANITIZERS)}, got {unknown}")
    if not wanted:
        return []
    # -O1 overrides -O3: the checks make optimised code take minutes to compile.
    return [f"-fsanitize={','.join(wanted)}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]


def missing_for_cuda():
    """What stands between this machine and the CUDA backend, as short phrases; empty when nothing does."""
    nvcc = CUDA_HOME is not None and (Path(CUDA_HOME) / "bin" / "nvcc").exists()
    have = {
        "CUDA sources in csrc/cuda": bool(sources("csrc/cuda/*.cu")),
        "nvcc (set CUDA_HOME or put it on PATH)": nvcc,
        f"a CUDA build of torch (this one is {torch.__version__})": torch.version.cuda is not None,
    }
    return [what for what, found in have.items() if not found]


def wants_cuda(override):
    """Whether CUDA sources are built: when everything is there, unless GRADOPS_CUDA says otherwise.

    Args:
        override: the value of GRADOPS_CUDA: "", "0" or "1".
    """
    if override not in ("", "0", "1"):
        sys.exit(f"GRADOPS_CUDA must be 0 or 1, got {override!r}")
    missing = missing_for_cuda()
    if override == "1" and missing:
        sys.exit(f"GRADOPS_CUDA=1, but the CUDA backend cannot be built here; missing: {'; '.join(missing)}")
    return override != "0" and not missing


def choose_architectures(environ):
    """Sets TORCH_CUDA_ARCH_LIST where the user has not: the present GPU's, or else DEFAULT_ARCHITECTURES."""
    if not environ.get("TORCH_CUDA_ARCH_LIST") and not torch.cuda.is_available():
        environ["TORCH_CUDA_ARCH_LIST"] = DEFAULT_ARCHITECTURES


def cudart_folders():
    """Where the toolkit has its libraries; CUDA_HOME may be a place from which nvcc is only a link."""
    command = [Path(CUDA_HOME) / "bin" / "nvcc", "--dryrun", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return re.findall(r'"-L([^"]+)"', said)


def extension(environ):
    """The one extension, `gradops._C`, as `environ` asks for it."""
    cuda = wants_cuda(environ.get("GRADOPS_CUDA", ""))
    sanitize = sanitize_flags(environ.get("GRADOPS_SANITIZE", ""))
    if cuda:
        choose_architectures(environ)
    files = [path for path in sources("csrc/*.cpp", "csrc/cpu/*.cpp") if cuda or path not in HOST_OF_CUDA]
    ext = CppExtension(
        "gradops._C",
        files + (sources("csrc/cuda/*.cu") if cuda else []),
        # Headers count as sources when setuptools asks whether anything is newer; ninja then finds out what.
        depends=["setup.py", *sources("csrc/**/*.h", "csrc/**/*.cuh", "csrc/*.h")],
        define_macros=[("GRADOPS_WITH_CUDA", "1")] if cuda else [],
        libraries=["cudart"] if cuda else [],
        library_dirs=cudart_folders() if cuda else [],
        extra_link_args=sanitize,
    )
    # As system headers, torch's are not warned about. CUDA sources include none of them.
    system = [f"-isystem{path}" for path in ext.include_dirs if path != "/usr/include"]
    ext.include_dirs = [str(ROOT / "csrc")]
    # For the compiler only: linking with it could bring in a second libgomp beside the one torch has loaded, whose
    # thread count torch.set_num_threads would not reach.
    openmp = ["-fopenmp"] if sys.platform.startswith("linux") else []
    ext.extra_compile_args = {"cxx": CXX_FLAGS + openmp + sanitize + system, "nvcc": NVCC_FLAGS}
    return ext


def build_command():
    """torch's build_ext with its object files kept in build/ for the next call; pip would use a temporary folder."""

    class Build(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            kind = "sanitize" if os.environ.get("GRADOPS_SANITIZE") else "plain"
            python = f"cp{sys.version_info.major}{sys.version_info.minor}"
            self.build_temp = str(Path("build", f"{kind}-{python}-torch{torch.__version__}"))

    return Build


if __name__ == "__main__":
    native = {"ext_modules": [extension(os.environ)], "cmdclass": {"build_ext": build_command()}} if NATIVE else {}
    setup(**native)
