"""ultralytics: YOLOv8n on pictures that are drawn here; the step clips, updates and averages in one pass."""

from pathlib import Path

import cv2
import numpy as np
from ultralytics import YOLO

import gradops
import gradops.ultralytics

random, size = np.random.default_rng(0), 64
for index in range(16):
    folder = Path("squares/train" if index < 12 else "squares/val").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    picture = random.integers(0, 60, (size, size, 3), dtype=np.uint8)
    left, top, side = random.integers((0, 0, 16), (36, 36, 28)).tolist()
    picture[top : top + side, left : left + side] = 220
    cv2.imwrite(str(folder / f"{index}.png"), picture)
    box = ((left + side / 2) / size, (top + side / 2) / size, side / size, side / size)
    (folder / f"{index}.txt").write_text("0 " + " ".join(map(str, box)))
Path("squares.yaml").write_text(f"path: {folder.parent}\ntrain: train\nval: val\nnames: [square]\n")

model = YOLO("yolov8n.yaml")
trainer = gradops.ultralytics.trainer(model, max_relative_step=gradops.RelativeStepCap(0.1, warmup_steps=10))
options = {"imgsz": size, "batch": 4, "nbs": 4, "workers": 0, "plots": False, "amp": False, "verbose": False}
project = str(Path("trained").absolute())
model.train(data="squares.yaml", trainer=trainer, epochs=3, optimizer="AdamW", project=project, **options)
print(model.trainer.optimizer.stats)
