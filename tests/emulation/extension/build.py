"""Builds gradops, into the folder that it is given, with its CUDA backend for parameters on the CPU.

The host side is the shipped one down to the launch; the kernels run on the emulator (../README.md). With that folder on
PYTHONPATH the tests of the step are tests of the CUDA backend. GRADOPS_SANITIZE compiles it with sanitizers.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent))

import emulator  # noqa: E402

CSRC = "csrc/"
SANITIZE = os.environ.get("GRADOPS_SANITIZE", "")
OBJECTS = Path("build", "-".join(["emulated-objects", *SANITIZE.split(",")]).rstrip("-"))
# By backend.cpp and some_pieces.cpp.
REPLACED = {"csrc/host/step_backend.cpp", "csrc/cpu/ops.cpp", "csrc/cuda/launch.cu", "csrc/cuda/host/work_table.cpp"}


def as_cpp(source):
    """A C++ file that is the CUDA source, touched only where it is new."""
    path = OBJECTS / source.removeprefix(CSRC).replace("/", "_").replace(".cu", "_cu.cpp")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f'#include "{source.removeprefix(CSRC)}"\n'
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return str(path)


def main(target):
    os.chdir(ROOT)
    shutil.rmtree(Path(target, "gradops"), ignore_errors=True)  # modules that have moved since
    names = runpy.run_path("gradops/building/recipe.py")
    extension = names["extension"]({**os.environ, "GRADOPS_CUDA": "0"})
    extension.sources = sorted(
        {
            *extension.sources,
            *names["sources"](*names["HOST_OF_CUDA"]),
            *(str(path.relative_to(ROOT)) for path in HERE.glob("*.cpp")),
            *(as_cpp(kernel) for kernel in {*names["sources"](*names["KERNELS_OF_CUDA"])} - REPLACED),
        }
        - REPLACED
    )
    extension.extra_objects = emulator.runtime(SANITIZE)
    extension.include_dirs += [str(HERE.parent)]
    flags = extension.extra_compile_args["cxx"]
    # The emulator's speed lies in its runtime; the kernels compile in a fraction of the time at -O1.
    flags += ["-DGRADOPS_EMULATE", "-O1", "-Wno-unknown-pragmas", f"-isystem{emulator.cuda_include()}"]

    class Build(names["build_command"]()):
        def finalize_options(self):
            super().finalize_options()
            self.build_temp = str(OBJECTS)

    setup(ext_modules=[extension], cmdclass={"build_ext": Build}, script_args=["-q", "build", "--build-lib", target])


if __name__ == "__main__":
    if emulator.cuda_include() is None:
        print("left out: the emulator needs the headers of the CUDA toolkit (cuda_fp16.h), and they were not found")
    else:
        main(sys.argv[1])
