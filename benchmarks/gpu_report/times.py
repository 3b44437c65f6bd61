"""Stage 5: times, by `gradops bench`: CUDA events from a cold L2 cache, graph replays, back to back, and the host's.

A process for each case, the most important first, so that one that takes too long costs the others nothing.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.runner import Command, Target

NAME, AT_ONCE = "time", 1
# Of names of recipes: torch's but its loop over tensors, ours in every form, and other people's.
WORDS = ("torch f", "gradops", "adam + clip", "adamw + clip")
ROUNDS = {
    "resnet50": 100,
    "resnet18": 100,
    "161x64": 100,
    "vit_b_16": 100,
    "10x64": 100,
    "convnext_tiny": 100,
    "resnet152": 50,
    "1000x64": 50,
    "10000x64": 10,
}
# torch.compile takes a minute or more, and so comes last.
COMPILED = "resnet50"


def commands(target: Target) -> list[Command]:
    if target.rehearsal:
        return [_bench(target, "10x64", "10x64", WORDS, ("--seconds", "0.2"))]
    found = [_bench(target, case, case, WORDS, ("--rounds", str(rounds))) for case, rounds in ROUNDS.items()]
    return [*found, _bench(target, f"{COMPILED} compiled", COMPILED, ("compile",), ("--rounds", "100"), 300)]


def _bench(
    target: Target, part: str, case: str, words: tuple[str, ...], options: tuple[str, ...], seconds: float = 150
) -> Command:
    path = target.file(f"bench-{part.replace(' ', '-')}.json")
    argv = ("-m", "gradops", "bench", "--device", target.device, "--model", case, "--recipes", *words, *options)
    return Command(part, (sys.executable, *argv, "--json", str(path)), reader(path), seconds=seconds)


def reader(path: Path) -> Callable[[int, str], list[dict[str, Any]]]:
    def read(returncode: int, output: str) -> list[dict[str, Any]]:
        """The rows of `gradops bench`; our own must have a time."""
        if returncode:
            raise ValueError(f"gradops bench ended with {returncode}")
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
        path.unlink()
        if reasons := [row["failed"] for row in rows if row["recipe"] == "gradops" and not row["seconds"]]:
            raise ValueError(f"gradops: {reasons[0]}")
        return rows

    return read
