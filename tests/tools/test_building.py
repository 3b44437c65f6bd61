"""`gradops build`: what it leaves in the user's cache, whatever happens meanwhile, and what is loaded from there."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cases import needs_native

import gradops
from gradops import __main__
from gradops.building import cache, command

ROOT = Path(__file__).resolve().parents[2]
RELEASE = torch.__version__.partition("+")[0]
MINOR = ".".join(RELEASE.split(".")[:2])

# Stands in for the recipe: the same words on its output, and a file in place of the extension.
RECIPE = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
print("[0/2] c++", flush=True)
(folder / "objects").mkdir()
(folder / "objects" / "half.o").write_text("half")
print("[1/2] c++ -c csrc/ops.cpp -o ops.o", flush=True)
time.sleep(float(os.environ.get("PAUSE", "0")))
if os.environ.get("FAIL"):
    print("csrc/ops.cpp:3:1: error: no such thing")
    sys.exit("gradops' native code was not compiled")
(folder / "gradops").mkdir()
(folder / "gradops" / "_C.test.so").write_bytes(b"gradops was built for torch VERSION CUDA none")
print("[2/2] c++ -c csrc/host/step_plan.cpp -o step_plan.o", flush=True)
with (folder.parent.parent / "compiled").open("a") as counted:
    counted.write("once\\n")
""".replace("VERSION", RELEASE)

# A test run in the background has inherited that Ctrl-C is ignored.
RUN = """
import pathlib, signal, sys
from gradops import __main__
from gradops.building import command
signal.signal(signal.SIGINT, signal.default_int_handler)
command._RECIPE = pathlib.Path(sys.argv.pop(1))
sys.exit(__main__.main(["build", *sys.argv[1:]]))
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user's cache folder, and a recipe that takes no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GRADOPS_CUDA", raising=False)
    (tmp_path / "recipe.py").write_text(RECIPE)
    return tmp_path


def start(user, *arguments, **environ):
    code = [sys.executable, "-c", RUN, str(user / "recipe.py"), *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(code, env={**os.environ, **environ}, **options)


@pytest.fixture
def build(user, monkeypatch, capfd):
    """Runs the command in this process, and gives its status and what it printed."""
    monkeypatch.setattr(command, "_RECIPE", user / "recipe.py")

    def run(*arguments, **environ):
        with monkeypatch.context() as patched:
            for name, value in environ.items():
                patched.setenv(name, value)
            status = __main__.main(["build", *arguments])
        return status, *capfd.readouterr()

    return run


def left(user):
    """What is in the cache besides the lock and the log."""
    return sorted(path.name for path in (user / "gradops").iterdir() if path.name not in (".lock", "build.log"))


def compiled(user):
    return len((user / "compiled").read_text().splitlines()) if (user / "compiled").exists() else 0


def test_build_prints_a_line_a_file_and_leaves_the_extension_alone(user, build):
    status, out, err = build()
    assert (status, err) == (0, "")
    assert out.splitlines()[:2] == ["[1/2] csrc/ops.cpp", "[2/2] csrc/host/step_plan.cpp"]
    (name,) = left(user)
    assert out.splitlines()[2].endswith(f"gradops/{name}")
    assert [path.name for path in (user / "gradops" / name).iterdir()] == ["_C.test.so"]
    assert cache.built() == [user / "gradops" / name / "_C.test.so"]


def test_name_holds_versions_of_gradops_torch_python_and_compiler(user, monkeypatch):
    name = cache.name(command.toolchain())
    for version in (gradops.__version__, f"cpython-3{sys.version_info.minor}", f"torch{torch.__version__}"):
        assert version in name
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert cache.name(command.toolchain()) != name


@pytest.mark.parametrize(
    ("listed", "gpus", "ending"),
    [
        ("", [], "nvcc_13.0"),
        ("", [(9, 0), (8, 0), (9, 0)], "nvcc_13.0_sm80_sm90"),
        ("8.0;9.0+PTX", [(9, 0)], "nvcc_13.0_8.0_9.0+PTX"),
    ],
)
def test_name_holds_the_gpus_that_cuda_code_is_for(listed, gpus, ending, tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.1\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    monkeypatch.delenv("GRADOPS_CUDA", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpus[device])
    assert command.toolchain().endswith(ending)


def test_second_build_compiles_nothing(user, build):
    build()
    status, out, _ = build()
    assert (status, compiled(user)) == (0, 1)
    assert out.startswith("built before: ")


def test_build_without_cuda_code_does_not_satisfy_a_demand_for_it(user, build):
    build()
    build(GRADOPS_CUDA="1")
    assert compiled(user) == 2
    assert len(left(user)) == 1


def test_two_processes_that_build_at_once_compile_once_and_both_succeed(user):
    both = [start(user, PAUSE="1") for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert compiled(user) == 1
    assert len(left(user)) == 1
    assert sum("another process builds" in out for out, _ in said) == 1


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def interrupted(user, number):
    process = start(user, PAUSE="600")
    wait_for(lambda: list(user.glob("gradops/.half-*/objects/half.o")))
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_build_leaves_nothing(user, number):
    interrupted(user, number)
    assert left(user) == []


def test_killed_build_leaves_nothing_to_load_and_the_next_one_removes_the_rest(user, build):
    interrupted(user, signal.SIGKILL)
    assert cache.built() == []
    assert build()[0] == 0
    assert len(left(user)) == 1
    assert cache.built()


def test_failed_build_shows_the_first_error_and_leaves_a_log(user, build):
    status, out, err = build(FAIL="1")
    assert status == 1
    assert "Traceback" not in out + err
    assert err.splitlines()[0] == "csrc/ops.cpp:3:1: error: no such thing"
    assert "gradops' native code was not compiled" in err
    assert "error: no such thing" in (user / "gradops" / "build.log").read_text()
    assert left(user) == []


def test_clean_removes_every_build(user, build):
    build()
    (user / "gradops" / "gradops0.0.1-older").mkdir()
    status, out, _ = build("--clean")
    assert status == 0
    assert out.startswith("2 builds removed")
    assert left(user) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_that_cannot_be_written_is_said_in_a_sentence(user, build):
    user.chmod(0o500)
    status, _, err = build()
    assert status == 1
    assert "XDG_CACHE_HOME" in err


def test_cache_that_is_a_file_is_said_in_a_sentence(user, build):
    status, _, err = build(XDG_CACHE_HOME=str(user / "recipe.py"))
    assert status == 1
    (line,) = err.splitlines()
    assert "XDG_CACHE_HOME" in line


def extension(folder, text):
    path = folder / "_C.test.so"
    path.write_bytes(b"\x7fELF" + bytes(5000) + text + b"\0rest")
    return path


WORDS = {
    "this torch": (f"gradops was built for torch {RELEASE} CUDA none", ""),
    "another patch": (f"gradops was built for torch {MINOR}.99 CUDA none", ""),
    "another torch": (
        "gradops was built for torch 2.1.0 CUDA none",
        f"built for torch 2.1, this is {MINOR}: run gradops build",
    ),
    "another CUDA": (
        f"gradops was built for torch {RELEASE} CUDA 9",
        f"built for torch with CUDA 9, this is {torch.__version__} with CUDA {torch.version.cuda}: run gradops build",
    ),
    "unknown": ("nothing", "built for an unknown torch: run gradops build"),
}


@pytest.mark.parametrize("words", WORDS)
def test_extension_of_another_torch_is_told_by_its_file(tmp_path, words):
    text, reason = WORDS[words]
    assert cache.misfit(extension(tmp_path, text.encode())) == reason


@needs_native
def test_extension_in_use_says_what_it_was_built_for():
    assert cache.built_for(Path(gradops._C.__file__))[0] == RELEASE
    assert gradops._C.build_info()["built_for"].startswith(f"gradops was built for torch {RELEASE} CUDA ")


LOOK = """
import sys
# An editable install would lend its extension.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
import torch
torch.__version__ = sys.argv[1] or torch.__version__
import gradops
from gradops import env
from gradops.building import cache
if cache.built() == []:
    print(cache.name("test"))
else:
    print(" ".join(env.facts()["native code"].split()))
"""


@pytest.fixture
def installed(user):
    """gradops in a folder that nobody can write, without an extension, and beside it the one that is in use here."""
    target = user / "site" / "gradops"
    shutil.copytree(ROOT / "gradops", target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "csrc", target / "csrc")
    name = look(user).strip()
    (user / "gradops" / name).mkdir(parents=True)
    file = Path(gradops._C.__file__)
    shutil.copy(file, user / "gradops" / name / file.name)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o555)
    yield user / "gradops" / name / file.name
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755)


def look(user, version=""):
    environ = {**os.environ, "PYTHONPATH": str(user / "site")}
    command = [sys.executable, "-c", LOOK, version]
    return subprocess.run(command, cwd=user, env=environ, capture_output=True, text=True, check=True).stdout


@needs_native
def test_what_was_built_is_loaded_from_the_cache_and_env_says_so(user, installed):
    assert look(user).strip() == f"{installed} (by gradops build)"


@needs_native
def test_what_was_built_for_another_torch_is_not_loaded_though_it_could_be_and_env_says_so(user, installed):
    reason = f"built for torch {MINOR}, this is 2.99: run gradops build"
    assert look(user, "2.99.0").strip() == f"gradops' native code is {reason}"


@pytest.mark.slow
def test_build_compiles_and_what_it_compiled_steps(tmp_path):
    shutil.copytree(ROOT / "gradops", tmp_path / "gradops", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "csrc", tmp_path / "gradops" / "csrc")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    script = LOOK.partition("import torch")[0] + "from gradops.__main__ import main; main(['build'])"
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=tmp_path, env={**environ, "GRADOPS_CUDA": "0"}, check=True)
    command = [sys.executable, "-c", LOOK, ""]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("(by gradops build)")
