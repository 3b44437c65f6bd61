"""What `python -m gradops env` prints: versions, compilers, and which backends are built and usable."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import torch

from gradops._version import __version__
from gradops.backends import choose
from gradops.backends.native import extension

WIDTH = 80
_LABEL = 16


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def nvcc_version() -> str:
    """Release of the nvcc that a build from here would use, or that there is none."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        return "not found"
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    release = re.search(r"release (\S+),", text)
    return f"{release.group(1) if release else 'unknown release'} ({nvcc})"


def _native(device_type: str) -> str:
    if reason := choose.missing("native", device_type):
        return f"not built: {reason}"
    native: Any = extension._C
    if device_type == "cpu":
        return f"usable, {native.cpu_capability()} code"
    if not torch.cuda.is_available():
        return "built, not usable: torch finds no CUDA device"
    forms = (f"cuda:{index} {native.launch_form(f'cuda:{index}')}" for index in range(torch.cuda.device_count()))
    return f"usable; {'; '.join(forms)}"


def _triton() -> str:
    if reason := choose.missing("triton", choose.TRITON_DEVICES[0]):
        return f"not usable: {reason}"
    version = importlib.metadata.version("triton")
    if not any(getattr(torch, device).is_available() for device in choose.TRITON_DEVICES):
        return f"{version}, not usable: torch finds no GPU"
    return f"usable, {version}"


def _chosen() -> str:
    devices = ["cpu", *(name for name in choose.TRITON_DEVICES if getattr(torch, name).is_available())]
    choices = [choose.backend_for(torch.device(name)) for name in devices]
    return "; ".join(
        f"{choice.device} {choice.name}" + (f" ({choice.reason})" if choice.reason else "") for choice in choices
    )


def states() -> dict[str, str]:
    """Each backend's state: "usable", or why it is not; and which one runs on which device, and why."""
    return {
        "CPU native": _native("cpu"),
        "CUDA native": _native("cuda"),
        "Triton": _triton(),
        "torch fallback": "usable on every device",
        "chosen": _chosen(),
    }


def facts() -> dict[str, str]:
    """Every line of the report, by its label, backends last."""
    native = extension._C
    build = native.build_info() if native is not None else {"compiler": "-", "torch": "-"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "gradops": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpu": f"{cpu_model()}, {cores} cores",
        "torch": f"{torch.__version__}, CUDA build: {torch.version.cuda or 'none'}",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads)",
        "built with": f"{build['compiler']}, for torch {build['torch']}",
        "native code": extension.loaded_from(),
        "nvcc": nvcc_version(),
        **states(),
    }


def report() -> str:
    """The whole text, at most 80 columns wide, to paste into a bug report."""
    indent = " " * _LABEL
    lines = [
        textwrap.fill(value, WIDTH, initial_indent=label.ljust(_LABEL), subsequent_indent=indent)
        for label, value in facts().items()
    ]
    return "\n".join(lines)
