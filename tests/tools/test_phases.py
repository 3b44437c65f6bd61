"""Sums over named ranges, from traces that are written by hand: a CPU's and a GPU's."""

import pytest
import torch

import gradops
from gradops.bench.costs import silence_profiler
from gradops.profile import memory, phases
from gradops.profile.trace import Event, Step, Trace

RANGE, OPERATOR = "user_annotation", "cpu_op"


def event(name, category, start, length, thread=1, **args):
    return {"ph": "X", "name": name, "cat": category, "ts": start, "dur": length, "pid": 0, "tid": thread, "args": args}


def moment(address, size, start, device=0):
    args = {"Addr": address, "Bytes": size, "Device Type": device}
    return {"ph": "i", "name": "[memory]", "cat": "cpu_instant_event", "ts": start, "pid": 0, "tid": 1, "args": args}


def steps(*events):
    whole = event("torch step", RANGE, 0, 100)
    return Trace({"traceEvents": [whole, *events, event("torch step", RANGE, 500, 1)]}).steps("torch")[:1]


def test_time_outside_every_range_is_other():
    found = phases.costs(steps(event("forward", RANGE, 10, 30), event("backward", RANGE, 50, 20)))
    assert found["forward"].seconds == pytest.approx(30e-6)
    assert found["backward"].seconds == pytest.approx(20e-6)
    assert found["other"].seconds == pytest.approx(50e-6)


def test_ranges_of_a_phase_add_up_over_accumulated_batches():
    found = phases.costs(steps(event("forward", RANGE, 10, 10), event("forward", RANGE, 30, 10)))
    assert found["forward"].seconds == pytest.approx(20e-6)


def test_operators_that_touch_data_count_once_and_views_never():
    found = phases.costs(
        steps(
            event("forward", RANGE, 0, 50),
            event("aten::linear", OPERATOR, 1, 10),
            event("aten::t", OPERATOR, 2, 1),
            event("aten::addmm", OPERATOR, 4, 5),
            event("aten::relu", OPERATOR, 20, 5, thread=2),
            event("aten::sum", OPERATOR, 60, 5),
        )
    )
    assert (found["forward"].launches, found["other"].launches) == (2, 1)


def test_value_that_python_asks_for_is_a_read_and_one_inside_an_operator_is_none():
    found = phases.costs(
        steps(
            event("optimizer", RANGE, 0, 50),
            event("aten::item", OPERATOR, 1, 5),
            event("aten::_local_scalar_dense", OPERATOR, 2, 2),
            event("aten::_fused_adamw_", OPERATOR, 10, 10),
            event("aten::item", OPERATOR, 11, 2),
        )
    )
    assert found["optimizer"].waits == 1


def test_kernels_count_for_the_phase_that_launched_them():
    found = phases.costs(
        steps(
            event("forward", RANGE, 0, 20),
            event("optimizer", RANGE, 20, 20),
            event("cudaLaunchKernel", "cuda_runtime", 5, 1, correlation=1),
            event("cuLaunchKernelEx", "cuda_driver", 25, 1, correlation=2),
            event("cudaStreamSynchronize", "cuda_runtime", 30, 5, correlation=3),
            event("gemm", "kernel", 22, 40, thread=7, correlation=1),
            event("one_pass_kernel", "kernel", 150, 10, thread=7, correlation=2),
            event("of another step", "kernel", 10, 10, thread=7, correlation=99),
        )
    )
    assert (found["forward"].launches, found["optimizer"].launches) == (1, 1)
    assert (found["forward"].waits, found["optimizer"].waits) == (0, 1)
    assert found["forward"].device_seconds == pytest.approx(40e-6)
    assert found["optimizer"].device_seconds == pytest.approx(10e-6)


def test_typical_step_is_near_the_medians_in_its_length_and_in_what_follows_backward():
    def step(length, update):
        whole = Event("torch step", RANGE, 0.0, length, 1, {})
        return Step(whole, [Event("optimizer", RANGE, 1.0, update, 1, {})])

    steps = [step(100.0, 5.0), step(101.0, 50.0), step(300.0, 6.0)]
    assert phases.typical(steps) is steps[0]
    found = phases.costs(steps)
    assert found["optimizer"].seconds == pytest.approx(5e-6)
    assert sum(cost.seconds for cost in found.values()) == pytest.approx(100e-6)


class SmallLoop:
    """What memory.measure looks at: two parameters of 40 bytes and 20 bytes of state."""

    def __init__(self):
        self.training = self
        self.model = torch.nn.ParameterList([torch.zeros(10), torch.zeros(10)])
        self.params = list(self.model.parameters())
        self.optimizer = torch.optim.Adam(self.params)
        self.optimizer.state[self.params[0]] = {"step": torch.zeros(1), "exp_avg": torch.zeros(4)}
        self.settings = type("Settings", (), {"device": "cpu"})()


def test_memory_is_split_into_what_stays_activations_and_temporaries():
    found = memory.measure(
        SmallLoop(),
        steps(
            event("forward", RANGE, 0, 10),
            event("backward", RANGE, 10, 10),
            event("optimizer", RANGE, 20, 10),
            moment(1, 1000, 1),
            moment(2, 300, 2),
            moment(2, -300, 3),
            moment(3, 80, 12),
            moment(1, -1000, 15),
            moment(4, 50, 22),
            moment(4, -50, 23),
            moment(77, -9999, 24),
            moment(8, 5555, 25, device=1),
        )[0],
    )
    assert (found.params, found.grads, found.state) == (80, 80, 20)
    assert (found.activations, found.temporaries) == (1000, 50)
    assert found.peaks == {"forward": 1400, "backward": 1180, "optimizer": 230}
    assert found.peak == 1400


def test_library_names_its_step_and_the_steps_parts():
    model = torch.nn.Linear(3, 2)
    optimizer = gradops.AdamW(model.parameters(), max_norm=1.0)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    silence_profiler()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        optimizer.step()
    found = {event.name: event for event in profile.events()}
    step = found["gradops.step"]
    for name in ("gradops.follow_params", "gradops.grad_stats", "gradops.update", "gradops.write_stats"):
        assert found[name].cpu_parent is step
        assert found[name].is_user_annotation
