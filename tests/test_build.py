"""What setup.py promises to whoever builds gradops."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import needs_native

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(tmp_path):
    """A bare copy of what setup.py looks at."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    return tmp_path


def recipe(checkout):
    """setup.py's names, without running it."""
    return runpy.run_path(str(checkout / "setup.py"), run_name="recipe")


def run_setup(checkout, *arguments, **environ):
    command = [sys.executable, "setup.py", "-q", *(arguments or ["egg_info"])]
    environ = {**os.environ, **environ}
    return subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)


def test_without_torch_one_sentence_says_what_to_run_first(checkout):
    hiding = checkout / "hiding"
    hiding.mkdir()
    (hiding / "torch.py").write_text('raise ModuleNotFoundError("No module named torch", name="torch")')
    done = run_setup(checkout, PYTHONPATH=str(hiding))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install torch" in done.stderr
    assert "pip install --no-build-isolation ." in done.stderr


def test_every_cpu_source_is_built_in_sorted_order(checkout):
    names = recipe(checkout)
    extension = names["extension"]({"GRADOPS_CUDA": "0"})
    found = [*checkout.glob("csrc/*.cpp"), *checkout.glob("csrc/cpu/*.cpp")]
    expected = sorted({str(path.relative_to(checkout)) for path in found} - set(names["HOST_OF_CUDA"]))
    assert expected == extension.sources
    assert "csrc/module.cpp" in expected


def test_changed_header_is_noticed(checkout):
    extension = recipe(checkout)["extension"]({})
    headers = {str(path.relative_to(checkout)) for path in checkout.glob("csrc/**/*.h")}
    assert headers
    assert headers <= set(extension.depends)


def test_no_flag_ties_the_binary_to_this_machine(checkout):
    flags = recipe(checkout)["extension"]({}).extra_compile_args["cxx"]
    assert not [flag for flag in flags if flag.startswith(("-march", "-mtune", "-mavx"))]


def test_fast_math_and_contraction_stay_off(checkout):
    flags = recipe(checkout)["extension"]({}).extra_compile_args["cxx"]
    assert "-ffp-contract=off" in flags
    assert not {"-ffast-math", "-Ofast", "-funsafe-math-optimizations", "-ffinite-math-only"} & set(flags)


def test_cuda_demanded_where_it_cannot_be_says_what_is_missing(checkout):
    shutil.rmtree(checkout / "csrc" / "cuda", ignore_errors=True)
    done = run_setup(checkout, GRADOPS_CUDA="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "missing: CUDA sources in csrc/cuda" in done.stderr


def cuda_machine(checkout, monkeypatch):
    """A checkout with one CUDA source, and the names of its setup.py on a machine that has all CUDA needs."""
    (checkout / "csrc" / "cuda").mkdir(exist_ok=True)
    (checkout / "csrc" / "cuda" / "probe.cu").write_text("")
    (checkout / "toolkit" / "bin").mkdir(parents=True)
    (checkout / "toolkit" / "bin" / "nvcc").write_text("")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    names = recipe(checkout)
    monkeypatch.setitem(names["missing_for_cuda"].__globals__, "CUDA_HOME", str(checkout / "toolkit"))
    return names


def test_cuda_is_wanted_when_everything_is_there(checkout, monkeypatch):
    assert cuda_machine(checkout, monkeypatch)["wants_cuda"]("")


def test_cuda_can_be_declined(checkout, monkeypatch):
    assert not cuda_machine(checkout, monkeypatch)["wants_cuda"]("0")


def test_cpu_build_of_torch_leaves_cuda_out(checkout, monkeypatch):
    names = cuda_machine(checkout, monkeypatch)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not names["wants_cuda"]("")
    with pytest.raises(SystemExit, match="a CUDA build of torch"):
        names["wants_cuda"]("1")


@pytest.mark.parametrize(("variable", "value"), [("GRADOPS_CUDA", "yes"), ("GRADOPS_SANITIZE", "adress")])
def test_misspelt_build_option_is_refused(checkout, variable, value):
    with pytest.raises(SystemExit, match=f"{variable} must .*{value}"):
        recipe(checkout)["extension"]({variable: value})


def test_misspelt_wish_for_no_native_code_is_refused(checkout):
    done = run_setup(checkout, GRADOPS_NATIVE="no")
    assert done.returncode == 1
    assert done.stderr.strip() == "GRADOPS_NATIVE must be 0 or 1, got 'no'"


def test_install_without_native_code_needs_no_compiler_and_no_torch_and_works(checkout, tmp_path):
    """What `GRADOPS_NATIVE=0 pip install .` puts into site-packages, imported from there."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(ROOT / "gradops", checkout / "gradops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    hiding, installed = checkout / "hiding", tmp_path / "installed"
    hiding.mkdir()
    (hiding / "torch.py").write_text('raise ModuleNotFoundError("No module named torch", name="torch")')
    done = run_setup(
        checkout, "build", "--build-lib", str(installed), GRADOPS_NATIVE="0", PATH="", PYTHONPATH=str(hiding)
    )
    assert done.returncode == 0, done.stderr
    assert not list(installed.rglob("*.so"))
    script = """
import sys
# An editable install would lend its extension.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import torch, gradops
param = torch.ones(3).requires_grad_()
param.grad = torch.full((3,), 4.0)
optimizer = gradops.AdamW([param], lr=0.1, weight_decay=0.0)
assert gradops.clip_grad_norm_([param], 1.0) == 48**0.5
optimizer.step()
print(gradops.__file__, param.tolist(), optimizer.stats.backend)
"""
    command = [sys.executable, "-c", script]
    environ = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=installed, env=environ, capture_output=True, text=True, check=True)
    assert str(installed) in done.stdout
    assert "[0.8999999761581421, 0.8999999761581421, 0.8999999761581421]" in done.stdout
    assert "GRADOPS_NATIVE=0" in done.stdout


def test_sanitizers_reach_compiler_and_linker(checkout):
    extension = recipe(checkout)["extension"]({"GRADOPS_SANITIZE": "address,undefined"})
    assert "-fsanitize=address,undefined" in extension.extra_compile_args["cxx"]
    assert "-fsanitize=address,undefined" in extension.extra_link_args


@needs_native
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the loaded libraries from /proc")
def test_extension_brings_no_second_openmp_library():
    """Two libgomps would be two thread pools, and torch.set_num_threads would reach one of them."""
    script = "import gradops, gradops._C; print(open('/proc/self/maps').read())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert len(set(re.findall(r"\S*lib[gi]?omp\S*", done.stdout))) == 1
