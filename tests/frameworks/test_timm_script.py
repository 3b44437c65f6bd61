"""`python -m gradops.timm`: small scripts, and timm's own training script where its path is given.

timm's package does not contain the script. GRADOPS_TIMM_SCRIPT=/path/to/train.py, of the installed release, runs it.
"""

import csv
import os
import shutil
import subprocess
import sys

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("timm.task")

import timm.task.task
from timm import utils

from gradops import timm as gt
from gradops.timm.__main__ import main

SCRIPT = os.environ.get("GRADOPS_TIMM_SCRIPT")
REASON = "GRADOPS_TIMM_SCRIPT is not set: the path of timm's train.py, which its package does not contain"

SMALL = """
import sys
import timm, torch
from beside_it import STEPS
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from timm.utils import ModelEmaV3, NativeScaler

assert __name__ == "__main__"
model = torch.nn.Linear(3, 2)
optimizer = create_optimizer_v2(model, opt=sys.argv[1], lr=0.1)
task = ClassificationTask(model, torch.nn.MSELoss(), verbose=False)
average = task.setup_ema(decay=0.9)
for step in range(STEPS):
    task(torch.ones(1, 3), torch.zeros(1, 2))["loss"].backward()
    timm.utils.dispatch_clip_grad(model.parameters(), 0.01)
    optimizer.step()
    optimizer.zero_grad()
    task.update_ema(step=step + 1)
print(type(average).__module__, type(average).__name__, NativeScaler.__module__, getattr(average, "in_pass", None))
"""


@pytest.fixture
def small(tmp_path):
    (tmp_path / "beside_it.py").write_text("STEPS = 3\n")
    (tmp_path / "small.py").write_text(SMALL)
    yield str(tmp_path / "small.py")
    sys.modules.pop("beside_it", None)


@pytest.mark.parametrize(("opt", "in_pass"), [("gradopssgd", True), ("sgd", False)])
def test_runner_gives_a_script_our_scaler_and_average(opt, in_pass, small, capsys):
    before = sys.argv, list(sys.path), timm.task.task.ModelEmaV3, utils.ModelEmaV3
    assert main([small, opt]) == 0
    assert capsys.readouterr().out.split() == ["gradops.timm.ema", "ModelEma", "gradops.timm.scaler", str(in_pass)]
    assert (sys.argv, list(sys.path), timm.task.task.ModelEmaV3, utils.ModelEmaV3) == before


def test_runner_without_a_script_says_how_it_is_used(tmp_path, capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr().out.count("usage: python -m gradops.timm SCRIPT") == 2
    assert main([str(tmp_path / "none.py")]) == 2
    assert "none.py is not there" in capsys.readouterr().err


def test_module_runs_as_a_command(small):
    done = subprocess.run([sys.executable, "-m", "gradops.timm", small, "gradopssgd"], capture_output=True, text=True)
    assert done.stdout.split()[-1:] == ["True"], done.stderr


FLAGS = {
    "norm": "--opt sgd --clip-grad 0.3",
    "value": "--opt sgd --clip-grad 0.005 --clip-mode value",
    "agc": "--opt sgd --clip-grad 0.01 --clip-mode agc",
    "bfloat16": "--opt sgd --clip-grad 0.3 --amp --amp-dtype bfloat16",
    "float16": "--opt sgd --clip-grad 0.01 --clip-mode agc --amp --amp-dtype float16",
    "adamw": "--opt adamw --lr 2e-3 --clip-grad 0.3 --layer-decay 0.7",
    "rmsprop": "--opt rmsprop --lr 2e-3 --clip-grad 0.3 --sched step --decay-epochs 1",
    "lion": "--opt lion --lr 2e-4 --clip-grad 0.3 --sched poly --sched-on-updates",
    "accumulation": "--opt momentum --clip-grad 0.3 --grad-accum-steps 2",
    "ema": "--opt sgd --clip-grad 0.3 --model-ema --model-ema-decay 0.9",
    "warmup": "--opt sgd --model-ema --model-ema-decay 0.99 --model-ema-warmup",
    "ema on the cpu": "--opt sgd --model-ema --model-ema-force-cpu --model-ema-decay 0.9",
    "mixup": "--opt sgd --clip-grad 0.3 --mixup 0.2 --cutmix 1.0 --model-ema",
    "model in bfloat16": "--opt sgd --clip-grad 0.3 --model-dtype bfloat16",
    "another optimizer": "--opt lamb --lr 2e-3 --clip-grad 0.3 --model-ema",
}
OURS = {info.name for info in gt.OPTIMIZERS}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    torchvision = pytest.importorskip("torchvision")
    root, numbers = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("validation", 2)):
        for label in range(3):
            (root / split / str(label)).mkdir(parents=True)
            for index in range(count):
                image = torch.rand(3, 40, 40, generator=numbers)
                image[label] += 0.5
                torchvision.utils.save_image(image.clamp(0, 1), root / split / str(label) / f"{index}.png")
    return root


@pytest.fixture
def script(images, tmp_path):
    """Runs timm's script for two epochs; gives what it logged and its last checkpoint."""

    def run(name, flags, *extra):
        common = "--model test_resnet --num-classes 3 --img-size 32 -b 4 --epochs 2 --warmup-epochs 0 --lr 0.02 "
        common += f"--workers 0 --device cpu --no-prefetcher --output {tmp_path} --experiment {name}"
        assert main([SCRIPT, "--data-dir", str(images), *common.split(), *flags, *extra]) == 0
        with open(tmp_path / name / "summary.csv") as file:
            # A resumed run writes the header again.
            rows = [[*map(float, row.values())] for row in csv.DictReader(file) if row["epoch"] != "epoch"]
        return rows, torch.load(tmp_path / name / "last.pth.tar", weights_only=False)

    return run


def both(script, flags, *extra):
    theirs = flags.split()
    ours = [f"gradops{word}" if f"gradops{word}" in OURS else word for word in theirs]
    return script("theirs", theirs, *extra), script("ours", ours, *extra)


def same(theirs, ours, close=1e-4):
    assert ours[0] == [pytest.approx(row, rel=close, abs=1e-6) for row in theirs[0]]
    for key in ("state_dict", "state_dict_ema"):
        assert (key in ours[1]) == (key in theirs[1])
        if key in ours[1]:
            vectors = [
                torch.cat([value.double().reshape(-1) for value in one[1][key].values()]) for one in (ours, theirs)
            ]
            assert (vectors[0] - vectors[1]).norm() <= close * vectors[1].norm()


@pytest.mark.skipif(SCRIPT is None, reason=REASON)
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_timms_script_trains_with_its_documented_flags_as_it_does_natively(flags, script):
    # In bfloat16 torch rounds after each operation of the step, and we at its end.
    same(*both(script, flags), close=5e-3 if "--model-dtype" in flags else 1e-4)


@pytest.mark.skipif(SCRIPT is None, reason=REASON)
@pytest.mark.parametrize("extra", [(), ("--no-resume-opt",)], ids=["with optimizer", "without"])
def test_timms_script_resumes(extra, script, tmp_path):
    flags = FLAGS["warmup"]
    both(script, flags)
    path = shutil.copy(tmp_path / "theirs" / "last.pth.tar", tmp_path)  # ours goes on from timm's checkpoint
    same(*both(script, flags, "--epochs", "3", "--resume", path, *extra))
