"""Installs gradops as pure Python, or with GRADOPS_NATIVE=1 compiled against the torch that is already installed.

Everything else is in pyproject.toml, and how the native code is compiled in gradops/building/recipe.py.
"""

import os
import runpy
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.egg_info import egg_info

ROOT = Path(__file__).resolve().parent
TORCH_FIRST = (
    "GRADOPS_NATIVE=1 compiles gradops against the torch you already have, and this build environment has none: run "
    "`pip install torch setuptools ninja` first, then `GRADOPS_NATIVE=1 pip install --no-build-isolation .`; or "
    "`pip install .`, and then `gradops build`"
)


def wants_native(environ, arguments):
    """Whether native code is compiled: where GRADOPS_NATIVE asks for it, or build_ext by its name."""
    wanted = environ.get("GRADOPS_NATIVE", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"GRADOPS_NATIVE must be 0 or 1, got {wanted!r}")
    return wanted == "1" or (wanted == "" and "build_ext" in arguments)


def native():
    """What setup() needs to compile, with a local version that names the torch it is compiled for."""
    try:
        recipe = runpy.run_path(str(ROOT / "gradops" / "building" / "recipe.py"), run_name="recipe")
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        sys.exit(TORCH_FIRST)
    torch, extension = recipe["torch"], recipe["extension"](os.environ)
    minor = ".".join(torch.__version__.split(".")[:2])
    # 13.0 becomes cu130.
    device = f"cu{torch.version.cuda.replace('.', '')}" if extension.define_macros else "cpu"

    class Tagged(egg_info):
        def finalize_options(self):
            self.tag_build = f"+torch{minor}{device}"  # here, since the setup.cfg of an sdist says that there is none
            super().finalize_options()

    return {"ext_modules": [extension], "cmdclass": {"build_ext": recipe["build_command"](), "egg_info": Tagged}}


class WithSources(build_py):
    """Puts csrc into the package, for `gradops build`; an editable install reads it where it lies."""

    def _copies(self):
        target = Path(self.build_lib, "gradops", "csrc")
        files = [] if self.editable_mode else sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
        return {path: target / path.relative_to(ROOT / "csrc") for path in files}

    def run(self):
        super().run()
        for path, copy in self._copies().items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *map(str, self._copies().values())]


if __name__ == "__main__":
    asked = native() if wants_native(os.environ, sys.argv[1:]) else {}
    commands = {"build_py": WithSources, **asked.pop("cmdclass", {})}
    setup(cmdclass=commands, **asked)
