"""Triton kernels, compiled for devices that are not here, from the very arguments of a launch."""

import contextlib
import os
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import jit

from gradops.backends.call import Row, StepCall
from gradops.backends.sharded.exchange import Exchange
from gradops.backends.triton import step as triton_step
from gradops.backends.triton.triton_before_3_5 import name_by_sources_before_3_5
from gradops.one_pass.state import fit_state, start_state
from gradops.optim.adam import RULE
from gradops.settings import Settings
from gradops.stats import StepBuffers

NVIDIA = ("80", "90", "100", "120")
AMD = ("gfx90a", "gfx942", "gfx1100")
# Triton 3.4 and older link AMD's code with ROCm's linker, which is rarely here. Only the assembly is looked at.
UNLINKED = {"TRITON_HIP_LLD_PATH": "/bin/true"}


def target_of(arch):
    """A GPU by NVIDIA's or AMD's name of its architecture; gfx1 and later have waves of 32."""
    if arch in NVIDIA:
        return GPUTarget("cuda", int(arch), 32)
    return GPUTarget("hip", arch, 32 if arch.startswith("gfx1") else 64)


@dataclass(frozen=True)
class Launch:
    """A kernel with the arguments and options it was launched with."""

    kernel: triton.runtime.JITFunction
    programs: int
    arguments: dict
    options: dict

    def compile(self, arch):
        """What a launch on a device of this architecture would compile: types, alignment and all."""
        name_by_sources_before_3_5(self.kernel)
        target = target_of(arch)
        device = SimpleNamespace(
            get_current_device=lambda: arch, get_current_stream=lambda _: None, get_current_target=lambda: target
        )
        with mock.patch.object(jit, "driver", SimpleNamespace(active=device)), mock.patch.dict(os.environ, UNLINKED):
            return self.kernel.warmup(grid=(self.programs,), **self.arguments, **self.options)


@contextlib.contextmanager
def recorded():
    """Yields a list to which each launch in the block is added; nothing runs."""
    launches, before = [], triton_step.launch

    def record(kernel, programs, arguments):
        launches.append(Launch(kernel, programs, arguments, dict(triton_step.OPTIONS)))

    triton_step.launch = record
    try:
        yield launches
    finally:
        triton_step.launch = before


def launches_of(param_dtype, grad_dtype, amsgrad=False, beta1=0.9, **settings):
    """The launches of one step of AdamW."""
    group = {"lr": 0.01, "betas": (beta1, 0.999), "eps": 1e-8, "weight_decay": 0.1, "maximize": False}
    group |= {"amsgrad": amsgrad, "decoupled_weight_decay": True}
    return launches_of_rule(RULE, group, param_dtype, grad_dtype, **settings)


class _OneProcess(Exchange):
    """With nobody: every number that is handed in is all that there is."""

    class _Alone:
        ranks = (0,)

        def gather(self, numbers, kinds, norm_type=2.0):
            return numbers[None]

        def counted(self, line):
            return line

    def __init__(self, params):
        self._gathering, self._roots, self.numels = self._Alone(), None, [param.numel() for param in params]


def launches_of_rule(rule, group, param_dtype, grad_dtype, shards=False, gradients=True, **settings):
    """The launches of one step of two parameters, a large and a small one, with these options of a group."""
    params = [torch.zeros(64, 128, dtype=param_dtype), torch.zeros(7, dtype=param_dtype)]
    group = {**group, "l1": 0.0, "params": params}
    rows = []
    for index, param in enumerate(params):
        state = start_state(param, rule, dict.fromkeys(rule.moments_of(group), 0.0), Settings(**settings))
        fit_state(state, param, rule, group, Settings(**settings))
        grad = torch.zeros_like(param, dtype=grad_dtype) if gradients else None
        rows.append(Row(param, str(index), 0, grad, state))
    buffers = StepBuffers()
    buffers.resize(("0", "1"), torch.device("cpu"))
    call = StepCall(rows, [group], Settings(**settings), None, True, None, buffers)
    call.exchange = _OneProcess(params) if shards else None
    with recorded() as launches:
        triton_step.TritonStep(rule).step(call)
    return launches
