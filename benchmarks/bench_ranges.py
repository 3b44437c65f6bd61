"""What the library's own named ranges cost when no profiler looks: under 1 µs a step.

A step opens five ranges (on a CPU: gradops.step, follow_params, grad_stats, update, write_stats). They are opened
here as the step opens them, in C++ and without anything inside, beside a whole step on one small parameter.
"""

import torch

import gradops
from gradops.bench.interleave import interleave

LIMIT = 1e-6
RANGES = 5
_SOURCE = """
#include <ATen/record_function.h>
#include <torch/extension.h>

void open_ranges(int64_t steps, int64_t ranges) {
  for (int64_t i = 0; i < steps; ++i) {
    for (int64_t j = 0; j < ranges; ++j) {
      RECORD_USER_SCOPE("gradops.step");
    }
  }
}
"""
_STEPS = 10_000  # in one call, which would be measured otherwise


def small_step():
    param = torch.nn.Parameter(torch.ones(8))
    param.grad = torch.ones(8)
    return gradops.AdamW([param], max_norm=1.0).step


def bench_ranges(benchmark):
    from torch.utils.cpp_extension import load_inline

    native = load_inline("gradops_ranges", _SOURCE, functions=["open_ranges"])
    functions = {"ranges": lambda: native.open_ranges(_STEPS, RANGES), "step": small_step()}
    samples = interleave(functions, budget=2.0)
    seconds = samples["ranges"].median / _STEPS
    benchmark.extra_info.update(case="ranges", seconds=seconds, step_seconds=samples["step"].median, ranges=RANGES)
    assert seconds < LIMIT, f"{RANGES} ranges take {seconds * 1e9:.0f} ns a step"
    benchmark.pedantic(native.open_ranges, args=(_STEPS, RANGES), rounds=5)
