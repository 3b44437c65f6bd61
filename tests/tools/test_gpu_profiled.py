"""The kernels of a step on a GPU, as the kit's stages of times and of training count them in what the profiler says."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import gpu_report_recorded as recorded
import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from gradops.bench import costs
from gradops.profile import phases
from gradops.profile.trace import Trace

EVENTS = [json.loads(line) for line in recorded.PROFILED.splitlines()]


def step_events(loop):
    """The recorded events of a loop's step and of what it launched, as `profile.events()` has them."""
    (whole,) = (event for event in EVENTS if event["name"] == f"{loop} step")
    own = [event for event in EVENTS if whole["ts"] < event["ts"] < whole["ts"] + 1500]
    return [
        FunctionEvent(
            number,
            event["name"],
            event["tid"],
            event["ts"],
            event["ts"] + event["dur"],
            device_type=DeviceType.CUDA if event["pid"] == 0 else DeviceType.CPU,
            is_user_annotation=event["cat"].endswith("user_annotation"),
        )
        for number, event in enumerate(own)
    ]


@pytest.mark.parametrize(("loop", "launched"), [("torch", 4), ("gradops", 2)])
def test_times_count_kernels_and_neither_copies_nor_fills_nor_ranges(loop, launched, monkeypatch):
    profile = nullcontext(SimpleNamespace(events=lambda: step_events(loop)))
    monkeypatch.setattr(torch.profiler, "profile", lambda **_: profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    taken = []
    params = [SimpleNamespace(is_cuda=True, grad=None)]
    assert costs.count_costs(lambda: taken.append(1), params).calls == launched
    assert len(taken) == 2  # once for the operators, once for the kernels


def test_training_counts_for_each_phase_the_kernels_that_it_launched():
    trace = Trace({"traceEvents": EVENTS})
    theirs, ours = (phases.costs(trace.steps(loop)) for loop in ("torch", "gradops"))
    assert {name: cost.launches for name, cost in theirs.items()} == {
        "forward": 1,
        "norm": 2,
        "optimizer": 1,
        "other": 0,
    }
    assert (ours["forward"].launches, ours["optimizer"].launches) == (1, 1)
    assert (theirs["norm"].waits, ours["optimizer"].waits) == (1, 0)
    assert theirs["optimizer"].device_seconds == pytest.approx(451e-6)
    assert ours["optimizer"].device_seconds == pytest.approx(220e-6)
