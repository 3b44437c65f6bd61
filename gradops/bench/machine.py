"""What explains a figure: machine, versions, threads and the command."""

import datetime
import os
import shlex
import sys
from typing import Any

import torch

from gradops import env
from gradops._version import __version__


def describe(device: str = "cpu") -> dict[str, Any]:
    """The machine and what runs on it; its own name explains nothing and stays out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts: dict[str, Any] = {
        "cpu": env.cpu_model(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "backend": env.states()["CPU native"].removeprefix("usable, "),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "gradops": __version__,
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties()
        facts |= {"gpu": gpu.name, "multiprocessors": gpu.multi_processor_count, "cuda": torch.version.cuda}
    return facts


def provenance(device: str) -> dict[str, Any]:
    """The head of every JSON document."""
    return {
        "command": shlex.join(["python", "-m", "gradops", *sys.argv[1:]]),
        "when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": describe(device),
    }


def sentence(head: dict[str, Any]) -> str:
    """One line on where figures come from."""
    what = head["machine"]
    where = f"{what['gpu']}, CUDA {what['cuda']}" if "gpu" in what else f"{what['cpu']}, {what['backend']}"
    versions = f"torch {what['torch']}, Python {what['python']}, gradops {what['gradops']}"
    return f"{where}; {what['cores']} cores, {what['threads']} threads; {versions}"
