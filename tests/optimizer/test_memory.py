"""One pass: gradients are only read, and nothing of the parameters' size is allocated."""

import os
import subprocess
import sys
import textwrap

import peak_memory
import pytest
import torch
from cases import needs_native

import gradops

PRELUDE = """
import sys, torch, gradops
from peak_memory import peak_of
torch.set_num_threads(2)

def resnet50():
    shapes, width = [(64, 3, 7, 7), (64,), (64,)], 64
    for blocks, channels in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            convs = [(channels, width, 1, 1), (channels, channels, 3, 3), (4 * channels, channels, 1, 1)]
            convs += [(4 * channels, width, 1, 1)] if block == 0 else []
            for conv in convs:
                shapes += [conv, (conv[0],), (conv[0],)]
            width = 4 * channels
    return [*shapes, (1000, 2048), (1000,)]
"""

STEPS = """
params = [torch.full(shape, 0.1).requires_grad_() for shape in resnet50()]
assert len(params) == 161 and sum(p.numel() for p in params) == 25557032
for param in params:
    param.grad = torch.full_like(param, 0.01)
for settings in (
    {},
    {"max_norm": 1.0, "clip_value": 1.0, "loss_scale": 64.0},
    {"max_norm": 1.0, "max_relative_step": 0.05, "amsgrad": True},
    {"max_norm": 1.0, "norm_type": 3.0},
):
    optimizer = gradops.AdamW(params, **settings)
    for _ in range(2):
        optimizer.scale(torch.zeros(())), optimizer.step()
    optimizer.scale(torch.zeros(()))
    print(peak_of(optimizer.step))
    assert int(optimizer.stats.steps_taken) == 3
print(peak_of(lambda: torch.full((1 << 20,), 1.0)))
"""


def run(script):
    code = PRELUDE + textwrap.dedent(script)
    # Every temporary from 64 KiB on is mapped anew, and so seen; else it may lie in memory that was freed before.
    path = os.pathsep.join([os.path.dirname(peak_memory.__file__), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_peak_extra_memory_for_resnet50_is_below_2_mb():
    *steps, four_mib = (int(number) for number in run(STEPS).split())
    assert four_mib > 3500, "the meter does not see a temporary of 4 MiB"
    assert len(steps) == 4
    assert max(steps) < 2000, f"the steps took {steps} KiB"


def test_gradients_in_read_only_memory_can_be_stepped_with(tmp_path):
    """Any write to a gradient, even of the value that is there, ends the process."""
    script = f"""
    import mmap, warnings
    warnings.simplefilter("ignore")
    path = {str(tmp_path / "grads")!r}
    n = 3 * 8192 + 5
    open(path, "wb").write(torch.randn(n).numpy().tobytes())
    file = open(path, "rb")
    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    for settings in ({{}}, dict(max_norm=1e-3, clip_value=0.1), dict(max_norm=1.0, loss_scale=4.0)):
        param = torch.randn(n).requires_grad_()
        param.grad = torch.frombuffer(memory, dtype=torch.float32)
        optimizer = gradops.AdamW([param], **settings)
        for _ in range(2):
            optimizer.scale(torch.zeros(())), optimizer.step()
        assert int(optimizer.stats.steps_taken) == 2
    if len(sys.argv) > 1:
        param.grad.mul_(1.0)
    """
    run(script)
    with pytest.raises(AssertionError):
        run(script.replace("len(sys.argv) > 1", "True"))


@needs_native
@pytest.mark.parametrize("settings", [{}, {"max_norm": 1e-3, "clip_value": 0.1, "max_relative_step": 0.01}])
def test_step_allocates_no_tensor_of_the_parameters_size(settings):
    params = [torch.randn(200, 200).requires_grad_() for _ in range(10)]
    optimizer = gradops.AdamW(params, **settings)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.key_averages())
    assert allocated < 4096


def test_state_is_two_float32_per_element(device):
    param = torch.randn(1000, dtype=torch.bfloat16, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    param.grad = torch.randn_like(param)
    optimizer.step()
    state = optimizer.state[param]
    assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert sum(value.untyped_storage().nbytes() for key, value in state.items() if key != "step") == 8 * 1000
