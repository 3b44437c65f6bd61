"""Stage 1: native code for this GPU's architecture only, and what `gradops env` says of it."""

import os
import sys
from typing import Any

from benchmarks.gpu_report.runner import Command, Target
from benchmarks.gpu_report.said import last_json

NAME, AT_ONCE = "build", 1
_MODULE = "benchmarks.gpu_report.build"


def commands(target: Target) -> list[Command]:
    # Four minutes are what 16 cores may take; a machine of fewer has until the stage's end.
    native = Command("native code", (sys.executable, "-m", _MODULE, "build", target.device))
    return [native, Command("env", (sys.executable, "-m", _MODULE, "env", target.device), read_env)]


def read_env(returncode: int, output: str) -> dict[str, Any]:
    """Machine and backends; native code must be usable."""
    found = last_json(output)
    state = found["env"]["CUDA native" if found["device"] == "cuda" else "CPU native"]
    if not state.startswith("usable"):
        raise ValueError(f"native code cannot be used: {state}")
    return found


def _build(device: str) -> int:
    import torch

    from gradops.__main__ import main

    if device == "cpu":
        os.environ["GRADOPS_CUDA"] = "0"
    else:
        major, minor = torch.cuda.get_device_capability()
        os.environ |= {"GRADOPS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    return main(["build"])


def _env(device: str) -> None:
    import json

    from gradops import env
    from gradops.bench import machine

    print(env.report())
    # Paths explain nothing elsewhere.
    facts = {key: value for key, value in env.facts().items() if key not in ("native code", "nvcc")}
    print(json.dumps({"device": device, "env": facts, "machine": machine.describe(device)}))


if __name__ == "__main__":
    sys.exit({"build": _build, "env": _env}[sys.argv[1]](sys.argv[2]))
