"""Stage 6: a whole training step of a ResNet-50 in channels_last, by `gradops profile`, with torch and with gradops."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.runner import Command, Target

NAME, AT_ONCE = "training", 1
TRAININGS = "benchmarks/gpu_report/resnet50.py"


def commands(target: Target) -> list[Command]:
    name, sizes = "make_training", ("--batch-size", "256", "--steps", "30")
    if target.rehearsal:
        name, sizes = "make_rehearsal", ("--batch-size", "2", "--steps", "2", "--profiled-steps", "1")
    found = []
    for precision in ("fp16", "bf16"):
        folder = target.file(f"profile-{precision}")
        argv = (
            "-m",
            "gradops",
            "profile",
            f"{TRAININGS}:{name}",
            "--device",
            target.device,
            "--precision",
            precision,
            *sizes,
        )
        command = (sys.executable, *argv, "--output", str(folder))
        found.append(Command(precision, command, reader(folder / "report.json"), seconds=240))
    return found


def reader(path: Path) -> Callable[[int, str], dict[str, Any]]:
    def read(returncode: int, output: str) -> dict[str, Any]:
        """The result of `gradops profile`, without what it knows of single steps."""
        if returncode:
            raise ValueError(f"gradops profile ended with {returncode}")
        found: dict[str, Any] = json.loads(path.read_text())["results"][-1]
        path.unlink()
        for loop in found["loops"].values():
            loop["skipped"] = sum(record["skipped"] for record in loop.pop("records"))
        return found

    return read
