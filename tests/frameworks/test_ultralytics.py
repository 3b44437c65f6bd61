"""`gradops.ultralytics` with the real trainer, on a YOLOv8n and images that are made here."""

import math
import pickletools
import subprocess
import sys
import zipfile

import pytest
import torch
import yolo  # before ultralytics, whose settings it moves; skips where that is not installed
from quick import slow_but
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import ModelEMA

import gradops
from gradops import ultralytics as gu
from gradops.one_pass.one_pass import OnePass

OPTIMIZERS = ["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSProp"]
# How far parameters may be apart, of the way that they have come: sums and updates are rounded otherwise than torch's,
# and the next forward hands that on. With max_norm 11 in the place of 10 SGD's are 0.17 apart or more.
CLOSE = 5e-3
# The same after a checkpoint, which has the averages in float16: one that is rounded the other way is 0.01 of the short
# way that is left. With max_norm 11 the resumed runs are 0.06 apart or more.
CLOSE_RESUMED = 3e-2


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return yolo.dataset(tmp_path_factory.mktemp("data"))


def both(path, data, **options):
    """The trainers of the same run without and with gradops."""
    return [yolo.train(path / name, data, ours, **options) for name, ours in (("native", None), ("ours", {}))]


def assert_equal(ours, native, wrapped=True, close=CLOSE):
    assert isinstance(ours.optimizer, OnePass) == wrapped
    assert ours.losses == pytest.approx(native.losses, rel=5e-3)
    assert ours.ema.updates == native.ema.updates
    for one, other in ((native.model, ours.model), (native.ema.ema, ours.ema.ema)):
        assert yolo.apart(one, other, native.begin) < close
        assert yolo.buffers_apart(one, other) < 1e-4


def late(trainer):
    """As if thousands of updates had been, so that the averages are not where the weights are.

    Adam and its like count by themselves what they have done.
    """
    if trainer.args.optimizer == "SGD":
        trainer.ema.updates = 3000


@pytest.mark.parametrize("optimizer", slow_but(["SGD"], ["SGD", "AdamW"]))
def test_thirty_steps_are_ultralytics_own(tmp_path, data, optimizer):
    native, ours = both(tmp_path, data, epochs=30, optimizer=optimizer, on=[("on_train_start", late)])
    assert len(native.losses) == 30
    assert int(ours.optimizer.stats.steps_taken) == 30
    assert float(ours.optimizer.stats.clip_coef) < 0.5  # it clips
    assert_equal(ours, native)


def test_accumulation_scaler_and_frozen_layers_are_ultralytics_own(tmp_path, data):
    def scale(trainer):
        wrapped = isinstance(trainer.optimizer, OnePass)
        trainer.scaler = (gradops.GradScaler if wrapped else torch.amp.GradScaler)("cpu", init_scale=1024.0)

    on = [("on_train_start", scale)]
    native, ours = both(tmp_path, data, epochs=3, batch=2, freeze=10, optimizer="SGD", on=on)
    assert int(ours.optimizer.stats.steps_taken) < len(ours.losses)
    assert_equal(ours, native)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS[1:])
def test_every_optimizer_is_ultralytics_own(tmp_path, data, optimizer):
    assert_equal(*reversed(both(tmp_path, data, epochs=4, optimizer=optimizer)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "model"), [("segment", "-seg"), ("pose", "-pose"), ("obb", "-obb"), ("classify", "-cls")]
)
def test_every_task_is_ultralytics_own(tmp_path, task, model):
    data = yolo.dataset(tmp_path / "data", task)
    native, ours = both(tmp_path, data, epochs=3, model=f"yolov8n{model}.yaml", optimizer="SGD")
    assert ours.args.task == task
    assert_equal(ours, native)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_and_scaler_are_ours_when_the_optimizer_is_made(name):
    trainer = object.__new__(gu.trainer(DetectionTrainer, track_updates=True))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    optimizer = trainer.build_optimizer(model, name=name)
    assert isinstance(optimizer, OnePass)
    assert (optimizer.max_norm, optimizer.track_updates) == (10.0, True)
    assert set(optimizer.stats.names) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert type(trainer.scaler) is gradops.GradScaler
    assert float(trainer.scaler.scale(torch.ones(()))) == 128.0


def interrupted(path, data, ours, optimizer):
    """The last checkpoint of a run that stopped after two epochs, made out to be one of thousands."""

    def stop(trainer):
        if trainer.epoch == 1:
            raise yolo.StopError

    trainer = yolo.train(path, data, ours, epochs=5, optimizer=optimizer, save=True, on=[("on_model_save", stop)])
    checkpoint = torch.load(trainer.last, weights_only=False)
    checkpoint["updates"] += 3000
    for state in checkpoint["optimizer"]["state"].values():
        assert "ema" not in state  # ultralytics saves the averages
        if "step" in state:
            state["step"] += 3000
    torch.save(checkpoint, trainer.last)
    return trainer.last


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_runs_resume_in_all_four_combinations(tmp_path, data, optimizer):
    runs = {}
    for first in (None, {}):
        last = interrupted(tmp_path / f"{first}", data, first, optimizer)
        kept = last.read_bytes()
        for second in (None, {}):
            last.write_bytes(kept)
            runs[first is not None, second is not None] = yolo.train(tmp_path, data, second, str(last), resume=True)
    native = runs[False, False]
    assert native.ema.updates == 3005
    assert yolo.apart(native.model, native.ema.ema, native.begin) > 0.1
    for (_, wrapped), run in runs.items():
        assert len(run.losses) == 3
        assert_equal(run, native, wrapped, CLOSE_RESUMED)


def test_averages_are_in_one_memory(tmp_path, data):
    trainer = yolo.train(tmp_path, data, {}, epochs=2)
    states, averages = trainer.optimizer.state, trainer.ema.ema
    for param, average in zip(trainer.model.parameters(), averages.parameters(), strict=True):
        assert not param.requires_grad or states[param]["ema"].data_ptr() == average.data_ptr()
    assert type(trainer.ema) is ModelEMA


def globals_of(checkpoint):
    """What unpickling a checkpoint would import."""
    with zipfile.ZipFile(checkpoint) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        text = [argument for _, argument, _ in pickletools.genops(archive.read(name)) if isinstance(argument, str)]
    return [word for word in text if word.split(".")[0].split(" ")[0] == "gradops"]


def test_checkpoint_is_one_that_plain_ultralytics_reads(tmp_path, data):
    last = interrupted(tmp_path, data, {}, "SGD")
    assert globals_of(last) == []
    assert YOLO(last).predict(torch.zeros(1, 3, 64, 64), verbose=False, save=False)


def test_run_recovers_from_a_nan_loss_as_ultralytics_does(tmp_path, data):
    failed = set()

    def fail(trainer):
        if trainer.epoch == 2 and id(trainer) not in failed:
            failed.add(id(trainer))
            trainer.loss = torch.tensor(math.nan)

    on = [("on_train_batch_end", fail), ("on_train_start", late)]
    native, ours = both(tmp_path, data, epochs=4, save=True, optimizer="SGD", on=on)
    assert len(native.losses) == len(ours.losses) == 5  # an epoch is done again
    assert_equal(ours, native)


@pytest.mark.parametrize("scaled", [True, False])
def test_step_with_inf_is_skipped_and_leaves_the_averages(tmp_path, data, scaled):
    before = {}

    def begin(trainer):
        if scaled:
            trainer.scaler = gradops.GradScaler("cpu", init_scale=1024.0)

    def poison(trainer):
        if trainer.epoch == 1:
            hook[0] = next(trainer.model.parameters()).register_hook(lambda grad: grad * math.inf)
            before.update((name, value.clone()) for name, value in trainer.ema.ema.state_dict().items())

    def check(trainer):
        if trainer.epoch == 1:
            hook[0].remove()
            after = trainer.ema.ema.state_dict()
            assert all(torch.equal(value, after[name]) for name, value in before.items())

    hook = [None]
    on = [("on_train_start", begin), ("on_train_batch_start", poison), ("on_train_batch_end", check)]
    trainer = yolo.train(tmp_path, data, {"protect": True}, epochs=3, on=on)
    stats = trainer.optimizer.stats
    assert (int(stats.steps_taken), int(stats.steps_skipped)) == (2, 1)
    assert not scaled or trainer.scaler.get_scale() == 512.0


def test_averages_of_another_decay_stay_ultralytics_own(tmp_path, data):
    def replace(trainer):
        trainer.ema = ModelEMA(trainer.model, decay=0.5)

    with yolo.Lines() as lines:
        native, ours = both(tmp_path, data, epochs=2, on=[("on_train_start", replace)])
    assert len(lines) == 1
    assert "decay" in lines[0]
    assert ours.optimizer.ema is None
    assert_equal(ours, native)


def test_musgd_is_left_to_torch_in_one_line(tmp_path, data):
    def stop(trainer):
        raise yolo.StopError

    options = {"epochs": 10_001, "optimizer": "auto", "on": [("on_train_batch_end", stop)]}
    with yolo.Lines() as lines:
        native, ours = both(tmp_path, data, **options)
    assert type(ours.optimizer).__name__ == "MuSGD"
    assert len(lines) == 1
    assert "MuSGD" in lines[0]
    assert all(map(torch.equal, native.ema.ema.state_dict().values(), ours.ema.ema.state_dict().values()))
    with pytest.raises(TypeError, match="MuSGD"):
        yolo.train(tmp_path / "refused", data, {"guard": gradops.SpikeGuard()}, **options)


class OwnStep(DetectionTrainer):
    def optimizer_step(self):
        """Does nothing."""


@pytest.mark.parametrize(
    ("of", "settings", "error", "said"),
    [
        (DetectionTrainer, {"max_norm": -1.0}, ValueError, "max_norm"),
        (DetectionTrainer, {"max_nrom": 1.0}, TypeError, "max_nrom"),
        (DetectionTrainer, {"loss_scale": "dynamic"}, TypeError, "loss_scale is no setting"),
        (DetectionTrainer, {"ema": gradops.WeightEma()}, TypeError, "ema is no setting"),
        (DetectionTrainer, {"clip_mode": "agc"}, ValueError, "max_norm"),
        (OwnStep, {}, TypeError, "optimizer_step of its own"),
        (torch.nn.Linear(1, 1), {}, TypeError, "takes a model of ultralytics"),
    ],
)
def test_what_cannot_be_is_refused_before_training(of, settings, error, said):
    with pytest.raises(error, match=said):
        gu.trainer(of, **settings)


def test_every_task_has_its_trainer():
    for task in ("", "-seg", "-pose", "-obb", "-cls"):
        model = YOLO(f"yolov8n{task}.yaml")
        made = gu.trainer(model)
        assert issubclass(made, model.task_map[model.task]["trainer"])
        assert issubclass(made, BaseTrainer)


def test_processes_of_ddp_get_the_class_with_its_settings(tmp_path):
    cloudpickle = pytest.importorskip("cloudpickle")  # by which ultralytics starts them
    made = gu.trainer(DetectionTrainer, max_norm=3.0, max_relative_step=gradops.RelativeStepCap(0.1))
    (tmp_path / "class").write_bytes(cloudpickle.dumps(made))
    code = "import pickle; made = pickle.load(open('class', 'rb')); print(made.__name__, made.settings)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == f"GradOpsDetectionTrainer {made.settings}"
