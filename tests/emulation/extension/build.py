"""Builds gradops, into the folder that it is given, with its CUDA backend for parameters on the CPU.

The host side is the shipped one down to the launch; the kernels run on the emulator (../README.md). With that folder on
PYTHONPATH the tests of the step are tests of the CUDA backend.
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
# By backend.cpp.
REPLACED = {"csrc/host/step_backend.cpp", "csrc/cpu/ops.cpp", "csrc/cuda/launch.cu"}


def write_if_changed(path, text):
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def main(target):
    os.chdir(ROOT)
    shutil.rmtree(Path(target, "gradops"), ignore_errors=True)  # modules that have moved since
    names = runpy.run_path("gradops/building/recipe.py")
    extension = names["extension"]({**os.environ, "GRADOPS_CUDA": "0"})
    own = [*HERE.glob("*.cpp"), *HERE.parent.glob("*.cpp")]
    kernels = Path("build/emulated-objects/kernels.cpp")
    kernels.parent.mkdir(parents=True, exist_ok=True)
    emulated = sorted({*names["sources"](*names["KERNELS_OF_CUDA"])} - REPLACED)
    write_if_changed(kernels, "".join(f'#include "{path.removeprefix(CSRC)}"\n' for path in emulated))
    extension.sources = sorted(
        {
            *extension.sources,
            *names["sources"](*names["HOST_OF_CUDA"]),
            *(str(path.relative_to(ROOT)) for path in own),
            str(kernels),
        }
        - REPLACED
    )
    extension.include_dirs += [str(HERE.parent)]
    flags = extension.extra_compile_args["cxx"]
    # The emulator's speed lies in its runtime; the kernels compile in a fraction of the time at -O1.
    flags += ["-DGRADOPS_EMULATE", "-O1", "-Wno-unknown-pragmas", f"-isystem{emulator.cuda_include()}"]

    class Build(names["build_command"]()):
        def finalize_options(self):
            super().finalize_options()
            self.build_temp = "build/emulated-objects"

    setup(ext_modules=[extension], cmdclass={"build_ext": Build}, script_args=["-q", "build", "--build-lib", target])


if __name__ == "__main__":
    if emulator.cuda_include() is None:
        print("left out: the emulator needs the headers of the CUDA toolkit (cuda_fp16.h), and they were not found")
    else:
        main(sys.argv[1])
