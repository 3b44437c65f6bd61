"""Stage 4: DRAM bytes of one step by hardware counters, beside 28 and 32 a parameter and the estimate for this L2.

The process that ncu watches reads an array of four times the L2 cache, steps, and reads it again: the step starts from
a cold cache, and what it left in the cache unwritten is counted when the second read drives it out.
"""

import json
import math
import sys
from typing import Any

from benchmarks.gpu_report.runner import Command, RefusedError, Target
from benchmarks.gpu_report.said import last_json, ncu, number

NAME, AT_ONCE = "bytes", 1
MODELS = ("resnet18", "resnet50", "resnet152", "vit_b_16", "convnext_tiny")
READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
NCU = (
    *("ncu", "--csv", "--page", "raw", "--print-units", "base", "--metrics", f"{READ},{WRITTEN}"),
    *("--profile-from-start", "off", "--cache-control", "none", "--clock-control", "none"),
)
SUM = "reduce_kernel"  # what torch calls it
NO_COUNTERS = "ERR_NVGPUCTRPERM"


def commands(target: Target) -> list[Command]:
    step = (sys.executable, "-m", "benchmarks.gpu_report.dram")
    if target.rehearsal:
        return [Command("10x64", (*step, "10x64", "cpu"), lambda _, output: last_json(output))]
    return [Command(model, (*NCU, *step, model, "cuda"), read, needs="ncu", seconds=150) for model in MODELS]


def read(returncode: int, output: str) -> dict[str, Any]:
    """Bytes per parameter, of the step's kernels, and what the read after them wrote: the rest of the step's writes."""
    if NO_COUNTERS in output:
        raise RefusedError(f"{NO_COUNTERS}: this machine lets only its administrator read the GPU's counters")
    expected, kernels = last_json(output), ncu(output)
    step = [kernel for kernel in kernels if SUM not in kernel["Kernel Name"]]
    if not step or len(step) == len(kernels):
        names = ", ".join(kernel["Kernel Name"] for kernel in kernels)
        raise ValueError(f"ncu must see a step and the read after it, it saw {names}")
    params = expected["params"]
    return {
        **expected,
        "kernels": [kernel["Kernel Name"] for kernel in step],
        "read": sum(number(kernel[READ]) for kernel in step) / params,
        "written": sum(number(kernel[WRITTEN]) for kernel in kernels) / params,
    }


def parked_rows(shared_bytes: int) -> int:
    """Rows of gradients that a block parks: 8 in registers, the rest in shared memory, as csrc/cuda/launch.h has it."""
    from tests.emulation.l2_model import ROW

    return 8 + (shared_bytes - 1024) // ROW


def estimate(model: str, l2: int, blocks: int, shared_bytes: int) -> float:
    """DRAM bytes per parameter by the model of docs/l2-estimate.md."""
    from gradops.bench.models import shapes
    from tests.emulation.l2_model import ROW, Walk, dram_bytes

    tensors = [math.prod(shape) for shape in shapes(model)]
    walk = Walk(reverse=True, evict_first=True, parked=parked_rows(shared_bytes) * ROW)
    return dram_bytes(tensors, l2, walk, blocks) / sum(tensors)


def _step(model: str, device: str) -> None:
    """What ncu watches."""
    import torch

    from gradops.bench.models import shapes
    from gradops.bench.optimizers import subject
    from gradops.bench.recipes import gradops_clipped, make_grads, make_params

    shape_list = shapes(model)
    params = make_params(shape_list, [grad.to(device) for grad in make_grads(shape_list)])
    step = gradops_clipped(subject("AdamW"))(params)
    for _ in range(3):
        step()
    found: dict[str, Any] = {"params": sum(map(math.prod, shape_list)), "estimate": None}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties()
        limits = (gpu.L2_cache_size, gpu.multi_processor_count, gpu.shared_memory_per_block_optin)
        found["estimate"] = estimate(model, *limits)
        other = torch.zeros(gpu.L2_cache_size, dtype=torch.float32, device=device)
        torch.sum(other)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        step()
        torch.sum(other)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _step(*sys.argv[1:])
