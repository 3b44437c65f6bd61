"""`python -m benchmarks.yolo_ema`: ultralytics' step with its averages, as its trainer takes it and as ours does.

Theirs unscales, clips to 10.0, steps, updates the scaler, clears the gradients and updates ModelEMA. Both are the
trainers' own `optimizer_step`, on the parameters of a YOLOv8n with random gradients, which are put back before each.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

# Read when ultralytics is imported: it writes and downloads nothing.
os.environ |= {"YOLO_CONFIG_DIR": tempfile.mkdtemp(), "YOLO_OFFLINE": "1", "YOLO_VERBOSE": "False"}

from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils.torch_utils import ModelEMA

from gradops import ultralytics as gu
from gradops.bench.interleave import Samples, in_turns
from gradops.bench.machine import provenance, sentence

MODEL, SCALE = "yolov8n.yaml", 1024.0
NATIVE, OURS = "ultralytics", "gradops"
TRAINERS = {NATIVE: DetectionTrainer, OURS: gu.trainer(DetectionTrainer)}


def make_trainer(cls: type, optimizer: str) -> tuple[DetectionTrainer, list[tuple[Tensor, Tensor]]]:
    """A trainer with all that its step needs; and each parameter with its gradient, which is scaled."""
    trainer = object.__new__(cls)
    trainer.device = torch.device("cpu")
    trainer.model = YOLO(MODEL).model
    params = [param.requires_grad_() for name, param in trainer.model.named_parameters() if ".dfl" not in name]
    trainer.ema = ModelEMA(trainer.model)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    trainer.optimizer = trainer.build_optimizer(trainer.model, name=optimizer, lr=1e-4)
    trainer.scaler.scale(torch.zeros(()))  # as the backward of each step does
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(param.shape, generator=generator) * SCALE * 1e-2 for param in params]
    return trainer, list(zip(params, grads, strict=True))


def measure(optimizer: str, rounds: int) -> dict[str, Samples]:
    """Seconds of each trainer's step."""
    torch.manual_seed(0)
    made = {name: make_trainer(cls, optimizer) for name, cls in TRAINERS.items()}

    def clock(name: str) -> float:
        trainer, pairs = made[name]
        for param, grad in pairs:
            param.grad = grad.clone()
        start = time.perf_counter()
        trainer.optimizer_step()
        return time.perf_counter() - start

    for name in made:
        for _ in range(3):
            clock(name)
    if (reason := made[OURS][0].averages.why_not) is not None:
        raise RuntimeError(f"the averages are not in the step: {reason}")
    return in_turns(made, clock, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", nargs="+", default=["SGD", "AdamW"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    head = {**provenance("cpu"), "command": " ".join(["python -m benchmarks.yolo_ema", *sys.argv[1:]])}
    head["machine"]["threads"] = " and ".join(map(str, args.threads))
    rows, table = [], Table(title=sentence(head), title_justify="left")
    for column in ("optimizer", "threads", "step", "ms", "to gradops"):
        table.add_column(column, justify="left" if column in ("optimizer", "step") else "right")
    for optimizer in args.optimizer:
        for threads in args.threads:
            torch.set_num_threads(threads)
            found = measure(optimizer, args.rounds)
            for name, samples in found.items():
                ratio = found[OURS].times_faster_than(samples)
                row = {"optimizer": optimizer, "threads": threads, "step": name, "seconds": samples.median}
                rows.append({**row, "spread": samples.spread, "gradops_speedup": ratio})
                table.add_row(optimizer, str(threads), name, f"{1e3 * samples.median:.3g}", f"{ratio:.2f}x")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
