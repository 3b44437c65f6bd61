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

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path):
    """A bare copy of what setup.py looks at."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    shutil.copytree(ROOT / "gradops" / "building", tmp_path / "gradops" / "building")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    return tmp_path


def recipe(checkout):
    """The recipe's names, without running it."""
    return runpy.run_path(str(checkout / "gradops" / "building" / "recipe.py"), run_name="recipe")


def run_setup(checkout, *arguments, **environ):
    command = [sys.executable, "setup.py", "-q", *(arguments or ["egg_info"])]
    environ = {**os.environ, **environ}
    return subprocess.run(command, cwd=checkout, env=environ, capture_output=True, text=True, check=False)


def test_without_torch_one_sentence_says_what_to_run_first(checkout):
    hiding = checkout / "hiding"
    hiding.mkdir()
    (hiding / "torch.py").write_text('raise ModuleNotFoundError("No module named torch", name="torch")')
    done = run_setup(checkout, PYTHONPATH=str(hiding), GRADOPS_NATIVE="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "pip install torch" in done.stderr
    assert "GRADOPS_NATIVE=1 pip install --no-build-isolation ." in done.stderr
    assert "`pip install .`, and then `gradops build`" in done.stderr


def test_every_cpu_source_is_built_in_sorted_order(checkout):
    names = recipe(checkout)
    extension = names["extension"]({"GRADOPS_CUDA": "0"})
    found = {str(path.relative_to(checkout)) for path in checkout.glob("csrc/**/*.cpp")}
    expected = sorted(path for path in found if not path.startswith("csrc/cuda/"))
    assert expected == extension.sources
    assert found == {*expected, *names["sources"](*names["HOST_OF_CUDA"])}
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
    done = run_setup(checkout, "build_ext", GRADOPS_CUDA="1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "missing: CUDA sources in csrc/cuda" in done.stderr


def cuda_machine(checkout, monkeypatch, release="13.0", has_headers=True):
    """A checkout with one CUDA source, and the names of its setup.py on a machine that has all CUDA needs."""
    (checkout / "csrc" / "cuda").mkdir(exist_ok=True)
    (checkout / "csrc" / "cuda" / "probe.cu").write_text("")
    (checkout / "toolkit" / "bin").mkdir(parents=True)
    nvcc = checkout / "toolkit" / "bin" / "nvcc"
    headers = f"exit {0 if has_headers else 1}"
    nvcc.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "release {release}, V{release}"; else {headers}; fi\n'
    )
    nvcc.chmod(0o755)
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


CANNOT = {
    "nvcc of another CUDA": ({"release": "12.4"}, "nvcc of CUDA 13, for which this torch was built"),
    "headers": ({"has_headers": False}, "the CUDA toolkit's headers"),
}


@pytest.mark.parametrize("lack", CANNOT)
def test_toolkit_that_cannot_compile_for_this_torch_leaves_gpus_to_triton_in_one_sentence(
    checkout, monkeypatch, capfd, lack
):
    machine, sentence = CANNOT[lack]
    names = cuda_machine(checkout, monkeypatch, **machine)
    assert not names["wants_cuda"]("")
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"gradops: GPUs are left to Triton; native CUDA code needs {sentence}")
    with pytest.raises(SystemExit, match=f"^GRADOPS_CUDA=1, but .*missing: {sentence}"):
        names["wants_cuda"]("1")


def test_toolkit_of_another_minor_release_compiles(checkout, monkeypatch, capfd):
    assert cuda_machine(checkout, monkeypatch, release="13.2")["wants_cuda"]("")
    assert capfd.readouterr().err == ""


def fake_compiler(folder, error):
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\necho "{error}" >&2\nexit 1\n')
    path.chmod(0o755)
    return str(path)


CPU_LACKS = {
    "compiler": (None, "a C++ compiler (no-such-compiler); Debian and Ubuntu: apt-get install g++"),
    "Python's headers": (
        "fatal error: Python.h: No such file or directory",
        "Python's headers (Python.h); Debian and Ubuntu: apt-get install python3-dev",
    ),
    "C++20": ("error: unrecognized command line option '-std=c++20'", "a C++ compiler that knows C++20"),
}


@pytest.mark.parametrize("lack", CPU_LACKS)
def test_what_compiling_lacks_is_one_sentence_that_says_what_runs_without(checkout, lack):
    error, sentence = CPU_LACKS[lack]
    compiler = "no-such-compiler" if error is None else fake_compiler(checkout, error)
    done = run_setup(checkout, "build", GRADOPS_NATIVE="1", CXX=compiler)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert said.startswith(f"gradops' native code cannot be compiled here; missing: {sentence}")
    assert said.endswith("without native code, steps run in Triton on GPUs and in torch's operations elsewhere")


def test_source_that_does_not_compile_gives_the_compilers_errors_and_no_traceback(checkout):
    for path in checkout.glob("csrc/**/*.cpp"):
        path.unlink()
    (checkout / "csrc" / "module.cpp").write_text("int main() { return undeclared; }\n")
    done = run_setup(checkout, "build_ext", GRADOPS_CUDA="0")
    assert done.returncode == 1
    assert 'setup.py", line' not in done.stderr
    assert "undeclared" in done.stdout + done.stderr
    assert "gradops' native code was not compiled" in done.stderr


@pytest.mark.parametrize(("variable", "value"), [("GRADOPS_CUDA", "yes"), ("GRADOPS_SANITIZE", "adress")])
def test_misspelt_build_option_is_refused(checkout, variable, value):
    with pytest.raises(SystemExit, match=f"{variable} must .*{value}"):
        recipe(checkout)["extension"]({variable: value})


def test_misspelt_wish_for_no_native_code_is_refused(checkout):
    done = run_setup(checkout, GRADOPS_NATIVE="no")
    assert done.returncode == 1
    assert done.stderr.strip() == "GRADOPS_NATIVE must be 0 or 1, got 'no'"


def test_install_without_native_code_needs_no_compiler_and_no_torch_and_works(checkout, tmp_path):
    """What `pip install .` puts into site-packages, imported from there."""
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, checkout)
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "gradops", checkout / "gradops", ignore=ignored, dirs_exist_ok=True)
    hiding, installed = checkout / "hiding", tmp_path / "installed"
    hiding.mkdir()
    (hiding / "torch.py").write_text('raise ModuleNotFoundError("No module named torch", name="torch")')
    done = run_setup(checkout, "build", "--build-lib", str(installed), PATH="", PYTHONPATH=str(hiding))
    assert done.returncode == 0, done.stderr
    assert not list(installed.rglob("*.so"))
    shipped = {
        path.relative_to(installed / "gradops") for path in installed.glob("gradops/csrc/**/*") if path.is_file()
    }
    assert shipped == {path.relative_to(ROOT) for path in ROOT.glob("csrc/**/*") if path.is_file()}
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
gradops.wrap(torch.optim.Adam([param], lr=0.0)).step()
print(gradops.__file__, param.tolist(), optimizer.stats.backend)
"""
    command = [sys.executable, "-c", script]
    environ = {**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=installed, env=environ, capture_output=True, text=True, check=True)
    assert str(installed) in done.stdout
    advice = (
        "gradops' native code is not compiled yet: run gradops build; until then steps run in torch's own operations"
    )
    assert done.stderr.count("Warning") == done.stderr.count(advice) == 1
    assert "[0.8999999761581421, 0.8999999761581421, 0.8999999761581421]" in done.stdout
    assert "run gradops build" in done.stdout


def test_native_wheel_names_its_torch_from_an_sdist_too(checkout):
    (checkout / "setup.cfg").write_text("[egg_info]\ntag_build = \ntag_date = 0\n")
    done = run_setup(checkout, "egg_info", GRADOPS_NATIVE="1", GRADOPS_CUDA="0")
    assert done.returncode == 0, done.stderr
    (info,) = checkout.glob("*.egg-info/PKG-INFO")
    minor = ".".join(torch.__version__.split(".")[:2])
    assert f"+torch{minor}cpu\n" in info.read_text()


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
