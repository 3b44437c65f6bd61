"""Stage 7: compute-sanitizer's four tools over a few small steps of both forms, with every kind of option.

Only kernels of ours are watched, but by initcheck, which must see who writes. Each tensor has an allocation of its own,
so that memcheck sees an access beyond one.
"""

import re
import sys
from typing import Any

from benchmarks.gpu_report.runner import Command, Target

NAME, AT_ONCE = "sanitizer", 2
OURS = ("--kernel-name", "kns=gradops")  # a part of the mangled names: our kernels' namespace
TOOLS = {"memcheck": OURS, "racecheck": OURS, "synccheck": OURS, "initcheck": ()}
SHAPES = [(1,), (0,), (17,), (64, 33), (3, 3, 16, 16), (8193,), (40_001,)]
UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_SUMMARY = re.compile(r"^========= (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?).*$", re.MULTILINE)


def commands(target: Target) -> list[Command]:
    return watched(target, "benchmarks.gpu_report.sanitizer")


def watched(target: Target, module: str) -> list[Command]:
    """The program that a module is, under each tool."""
    steps = (sys.executable, "-m", module, target.device)
    if target.rehearsal:
        return [Command("steps", steps)]
    return [
        Command(
            tool,
            ("compute-sanitizer", "--tool", tool, "--error-exitcode", "7", *options, *steps),
            read,
            needs="compute-sanitizer",
            environ=UNCACHED,
            seconds=230,
        )
        for tool, options in TOOLS.items()
    ]


def read(returncode: int, output: str) -> dict[str, Any]:
    """The tool's summary, which must count nothing, of a program that ran to its end."""
    summaries = list(_SUMMARY.finditer(output))
    if not summaries:
        raise ValueError("no summary")
    if returncode or int(summaries[-1][1]):
        raise ValueError(summaries[-1][0].lstrip("= "))
    return {"summary": summaries[-1][0].lstrip("= ")}


def _steps(device: str) -> None:
    import torch

    import gradops

    everything = {
        "max_norm": 1.0,
        "clip_value": 0.5,
        "max_relative_step": 0.05,
        "loss_scale": "dynamic",
        "guard": gradops.SpikeGuard(),
        "track_updates": True,
    }
    for one_launch in (True, False):
        gradops._C.allow_one_launch(one_launch)
        for settings in (
            {},
            everything,
            {"master_weights": True},
            {"rounding": "kahan"},
            {"clip_mode": "agc", "max_norm": 0.01},
        ):
            dtype = torch.bfloat16 if settings.keys() & {"master_weights", "rounding"} else torch.float32
            small_steps(gradops.AdamW, device, dtype, lr=0.1, amsgrad=True, **settings)


def small_steps(cls: Any, device: str, dtype: Any, **settings: Any) -> None:
    """Three steps; prints what ran them."""
    import torch

    params = [torch.randn(shape).to(device, dtype).requires_grad_() for shape in SHAPES]
    optimizer = cls(params, **settings)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape).to(device, dtype)
        if optimizer.loss_scale is not None:
            optimizer.scale(torch.zeros((), device=device))
        optimizer.step()
    print(optimizer.stats.backend, cls.__name__, sorted(settings), int(optimizer.stats.steps_taken), flush=True)


if __name__ == "__main__":
    _steps(*sys.argv[1:])
