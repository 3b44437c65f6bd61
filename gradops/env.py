"""What `python -m gradops env` prints: versions, compilers, and which backends are built and usable."""

import importlib
import os
import platform
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from types import ModuleType

import torch

from gradops._version import __version__

WIDTH = 80
_LABEL = 16


def load_extension() -> tuple[ModuleType | None, str]:
    """The native module, or None and the sentence that says why it cannot be loaded."""
    try:
        return importlib.import_module("gradops._C"), ""
    except ImportError as error:
        return None, f"not built, or built against another torch ({error})"


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


def _cuda_backend(extension: ModuleType | None) -> str:
    if torch.version.cuda is None:
        return "not built: this torch is a build without CUDA"
    if extension is None or not extension.build_info()["cuda"]:
        return "not built: nvcc was not found, or GRADOPS_CUDA=0 was set; reinstall with nvcc on PATH or in CUDA_HOME"
    if not torch.cuda.is_available():
        return "built, not usable: torch finds no CUDA device"
    forms = (f"cuda:{index} {extension.launch_form(f'cuda:{index}')}" for index in range(torch.cuda.device_count()))
    return f"usable; {'; '.join(forms)}"


def backends() -> dict[str, str]:
    """Each backend's state: "usable", or why it is not."""
    extension, reason = load_extension()
    cpu = reason if extension is None else f"usable, {extension.cpu_capability()} code"
    return {
        "CPU native": cpu,
        "CUDA native": _cuda_backend(extension),
        "Triton": "not built: this version has no Triton kernels",
        "torch fallback": "not built: what the native code cannot fuse is refused, with the reason",
    }


def facts() -> dict[str, str]:
    """Every line of the report, by its label, backends last."""
    extension, _ = load_extension()
    build = extension.build_info() if extension is not None else {"compiler": "-", "torch": "-"}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "gradops": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "cpu": f"{cpu_model()}, {cores} cores",
        "torch": f"{torch.__version__}, CUDA build: {torch.version.cuda or 'none'}",
        "threads": f"{torch.get_num_threads()} (torch.set_num_threads)",
        "built with": f"{build['compiler']}, for torch {build['torch']}",
        "nvcc": nvcc_version(),
        **backends(),
    }


def report() -> str:
    """The whole text, at most 80 columns wide, to paste into a bug report."""
    indent = " " * _LABEL
    lines = [
        textwrap.fill(value, WIDTH, initial_indent=label.ljust(_LABEL), subsequent_indent=indent)
        for label, value in facts().items()
    ]
    return "\n".join(lines)
