"""What users have after `pip install gradops`: a command, and types that mypy and pyright understand."""

import json
import re
import subprocess
import sys
import tarfile

import pytest
from installed import ROOT, environment, install, sources

import gradops

SCRIPT = """
import torch
import gradops

model = torch.nn.Linear(2, 2)
optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
optimizer = gradops.wrap(optimizer, max_norm=1.0)
loss = model(torch.ones(1, 2)).sum()
optimizer.backward(loss)
optimizer.step()
optimizer.zero_grad()
norm: torch.Tensor = optimizer.stats.grad_norm
optimizer.max_norm = 0.5
optimizer.unscale_()
optimizer.refresh_()

cap = gradops.RelativeStepCap(0.1, warmup_steps=100)
capped = gradops.wrap(
    torch.optim.Adam(model.parameters()), max_norm=1.0, max_relative_step=cap, loss_scale="dynamic", backend="torch"
)
capped.backward(model(torch.ones(1, 2)).sum())
capped.clip_mode = "agc"
with gradops.Recorder(capped, model, path="run.npz") as recorder:
    capped.step()
print(recorder.report())
built = gradops.AdamW(model.parameters(), lr=1e-3, max_norm=1.0, rounding="kahan", guard=gradops.SpikeGuard())
taken: torch.Tensor = built.stats.clone().steps_taken


class Mine(torch.optim.AdamW):
    pass


mine = gradops.wrap(Mine(model.parameters()), protect=model)
mine.backward(model(torch.ones(1, 2)).sum())
plain: torch.optim.AdamW = gradops.unwrap(mine)


def train(optimizer: torch.optim.Optimizer) -> None:
    wrapped: torch.optim.Optimizer = gradops.wrap(optimizer, max_norm=1.0)
    wrapped.step()


loader = [(torch.ones(4, 2), torch.ones(4, 2))]
curve = gradops.lr_find(model, built, torch.nn.functional.mse_loss, loader, num_steps=20)
rate: float | None = curve.suggestion
"""

WRONG = """
import torch
import gradops

optimizer = torch.optim.AdamW([torch.zeros(2)])
gradops.wrap(optimizer, max_nrm=1.0)
gradops.wrap(optimizer, max_norm="1")
gradops.wrap(optimizer, clip_mode="nrom")
gradops.wrap(optimizer, loss_scale="dynamical")
gradops.AdamW([torch.zeros(2)], backend="cuda")
gradops.AdamW([torch.zeros(2)], rounding="up")
gradops.wrap(optimizer).max_norm = "1"
gradops.warp(optimizer)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return install(tmp_path_factory.mktemp("installed"))


def mypy(path, site):
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--cache-dir",
        str(site.parent / "cache"),
        str(path),
    ]
    done = subprocess.run(command, cwd=path.parent, env=environment(site), capture_output=True, text=True)
    assert not done.stderr, done.stderr
    return [(int(row), text) for row, text in re.findall(r"^[^:\n]+:(\d+): error: (.*)$", done.stdout, re.M)]


def pyright(path, site):
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(path)]
    env = {**environment(site), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True)
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(said["range"]["start"]["line"] + 1, said["message"]) for said in found if said["severity"] == "error"]


CHECKERS = [mypy, pyright]


@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_accept_the_lines_that_the_readme_shows(checker, site, tmp_path):
    pytest.importorskip(checker.__name__)
    (tmp_path / "script.py").write_text(SCRIPT)
    assert checker(tmp_path / "script.py", site) == []


@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_refuse_every_wrong_setting(checker, site, tmp_path):
    pytest.importorskip(checker.__name__)
    (tmp_path / "script.py").write_text(WRONG)
    wrong = [number for number, line in enumerate(WRONG.splitlines(), 1) if number > 5]
    assert sorted({row for row, _ in checker(tmp_path / "script.py", site)}) == wrong


@pytest.mark.parametrize("checker", CHECKERS)
def test_it_is_the_installed_package_that_is_checked(checker, tmp_path):
    """In the place of another one, which lacks `wrap`, they would find that."""
    pytest.importorskip(checker.__name__)
    (tmp_path / "site" / "gradops").mkdir(parents=True)
    (tmp_path / "site" / "gradops" / "py.typed").write_text("")
    (tmp_path / "site" / "gradops" / "__init__.py").write_text("")
    (tmp_path / "script.py").write_text("import gradops\ngradops.wrap\n")
    assert [row for row, _ in checker(tmp_path / "script.py", tmp_path / "site")] == [2]


def test_the_lines_that_are_checked_run(site, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(site), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_is_a_command(site):
    (command,) = (site / "bin").glob("gradops*")
    done = subprocess.run([command, "--version"], env=environment(site), capture_output=True, text=True, check=True)
    assert done.stdout == f"gradops {gradops.__version__}\n"
    done = subprocess.run([command], env=environment(site), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: gradops ")


def test_guide_is_shown_where_only_the_package_is(site, tmp_path):
    command = [sys.executable, "-m", "gradops", "guide", "cap-the-relative-step"]
    env = {**environment(site), "COLUMNS": "80"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("Cap the relative step\n"), done.stderr
    assert not (site / "gradops" / "diagnose" / "exploding-gradients.md").is_symlink()


def test_sdist_has_the_guide_and_not_a_link_to_it(tmp_path):
    source = sources(tmp_path)
    make = "import setuptools.build_meta; setuptools.build_meta.build_sdist('.')"
    subprocess.run([sys.executable, "-c", make], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(source.glob("*.tar.gz"))) as made:
        (found,) = (member for member in made if member.name.endswith("diagnose/exploding-gradients.md"))
        assert made.extractfile(found).read() == (ROOT / "docs" / "exploding-gradients.md").read_bytes()
        assert found.isreg()
