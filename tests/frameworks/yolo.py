"""Small trainings of ultralytics on images that are made here; nothing is downloaded or written elsewhere."""

import logging
import os
import tempfile
from contextlib import suppress

# Read when ultralytics is imported.
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "1"
os.environ["YOLO_AUTOINSTALL"] = "0"

import pytest

pytest.importorskip("ultralytics")

import cv2
import numpy as np
import torch
from ultralytics import YOLO
from ultralytics.utils import LOGGER

from gradops import ultralytics as gu

SIZE = 64
# Rates under which the rounding of a step, which differs, does not grow: BatchNorm's sizes here are a few numbers.
OPTIONS = {
    "imgsz": SIZE,
    "batch": 8,
    "nbs": 8,
    "optimizer": "AdamW",
    "lr0": 1e-4,
    "warmup_bias_lr": 1e-3,
    "warmup_epochs": 2.0,
    "mosaic": 0.0,
    "amp": False,
    "val": False,
    "plots": False,
    "cache": True,
    "save": False,
    "verbose": False,
    "device": "cpu",
    "workers": 0,
    "name": "run",
}


def dataset(path, task="detect", images=8):
    """Coloured rectangles of two kinds with their labels; what `train` takes as `data`."""
    random = np.random.default_rng(0)
    for folder in ("images", "labels", "train/a", "train/b", "val/a", "val/b"):
        (path / folder).mkdir(parents=True)
    for index in range(images):
        image = random.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        lines = []
        for kind in (0, 1):
            (width, height), (left, top) = random.integers(16, 28, 2), random.integers(0, SIZE - 28, 2)
            image[top : top + height, left : left + width, kind] = 220
            right, bottom = left + width, top + height
            corners = [left, top, right, top, right, bottom, left, bottom]
            box = [left + width / 2, top + height / 2, width, height]
            label = {"segment": corners, "obb": corners, "pose": [*box, left, top, right, bottom]}.get(task, box)
            lines.append(" ".join([str(kind), *(f"{value / SIZE:.6f}" for value in label)]))
        for folder in ("images", f"train/{'ab'[index % 2]}", f"val/{'ab'[index % 2]}"):
            cv2.imwrite(str(path / folder / f"{index}.png"), image)
        (path / "labels" / f"{index}.txt").write_text("\n".join(lines))
    points = "kpt_shape: [2, 2]\n" if task == "pose" else ""
    (path / "data.yaml").write_text(f"path: {path}\ntrain: images\nval: images\nnames: {{0: a, 1: b}}\n{points}")
    return str(path if task == "classify" else path / "data.yaml")


class StopError(Exception):
    """Raised by a callback to interrupt a training."""


def train(path, data, ours=None, model="yolov8n.yaml", on=(), **options):
    """The trainer after a run of ultralytics' own, or with these settings of `gradops.ultralytics.trainer`.

    It has the losses of its batches as `losses`, and the parameters before the first as `begin`.
    """
    torch.manual_seed(0)
    yolo, losses, begin = YOLO(model), [], {}
    trainers = []

    def start(trainer):
        trainers.append(trainer)
        begin.update((name, param.detach().clone()) for name, param in trainer.model.named_parameters())

    yolo.add_callback("on_train_start", start)
    yolo.add_callback("on_train_batch_end", lambda trainer: losses.append(trainer.loss.item()))
    for event, callback in on:
        yolo.add_callback(event, callback)
    chosen = {} if ours is None else {"trainer": gu.trainer(yolo, **ours)}
    options = options if "resume" in options else {**OPTIONS, "data": data, **options}
    # ultralytics sets cudnn's flags, which torch's test utilities have frozen.
    with suppress(StopError), torch.backends.__allow_nonbracketed_mutation():
        yolo.train(project=str(path), **chosen, **options)
    trainer = trainers[0]
    trainer.losses, trainer.begin = losses, begin
    return trainer


def apart(one, other, begin):
    """How far two models' parameters are from each other, of how far the first has come."""
    here, there = one.state_dict(), other.state_dict()
    away = sum((here[name] - there[name]).double().square().sum() for name in begin)
    come = sum((here[name] - begin[name]).double().square().sum() for name in begin)
    return float((away / come).sqrt())


def buffers_apart(one, other):
    """The same for floating-point buffers, of their sizes."""
    pairs = [(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True) if a.is_floating_point()]
    away = sum((a - b).double().square().sum() for a, b in pairs)
    return float((away / sum(a.double().square().sum() for a, _ in pairs)).sqrt())


class Lines(logging.Handler):
    """Inside a `with`, what ultralytics logs of gradops."""

    def __enter__(self):
        self.lines, self.level_before = [], LOGGER.level
        LOGGER.setLevel(logging.INFO)
        LOGGER.addHandler(self)
        return self.lines

    def emit(self, record):
        if record.getMessage().startswith("gradops"):
            self.lines.append(record.getMessage())

    def __exit__(self, *_):
        LOGGER.removeHandler(self)
        LOGGER.setLevel(self.level_before)
