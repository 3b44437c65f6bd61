"""The Triton step in Triton's interpreter: bytes, bounds, order of programs; and the shared test bodies.

What runs in the interpreter runs in a pytest of its own, with TRITON_INTERPRET=1, that the tests at the end start. What
the interpreter cannot show stands in interpreter.py.
"""

import dataclasses
import os
from pathlib import Path

import pytest
import torch
from beside import assert_bitwise, assert_same_bits, snapshot
from cases import CHUNK, ParamCase

import gradops

pytest.importorskip("triton", minversion="3.3")
import triton
import triton.language as tl
from interpreter import Meter, metered, run_interpreted, shuffled

from gradops.backends.triton import step as triton_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="started in the interpreter by the tests below")
outside = pytest.mark.skipif(INTERPRETED, reason="this is what starts the interpreter")


@pytest.fixture
def launches(monkeypatch):
    """The kernels that were launched and their arguments."""
    seen, launch = [], triton_step.launch

    def noted(kernel, programs, arguments):
        seen.append((kernel.fn.__name__, programs, arguments))
        launch(kernel, programs, arguments)

    monkeypatch.setattr(triton_step, "launch", noted)
    return seen


def step_of(cases, steps=2, **settings):
    """An optimizer after some steps; the same random numbers each time."""
    torch.manual_seed(5)
    optimizer = gradops.AdamW([case.param() for case in cases], lr=0.1, backend="triton", **settings)
    for _ in range(steps):
        step(optimizer, cases)
    return optimizer


def step(optimizer, cases):
    for case, param in zip(cases, optimizer.param_groups[0]["params"], strict=True):
        param.grad = case.grad()
    optimizer.step()


@interpreted
def test_a_step_is_two_launches_whatever_the_number_of_tensors(launches):
    optimizer = step_of([ParamCase((3,))] * 12, steps=1, max_norm=1.0)
    assert [name for name, _, _ in launches] == ["grad_stats_kernel", "update_step_kernel"]
    assert "triton" in optimizer.stats.backend


@interpreted
def test_sizes_are_read_once_for_the_relative_step_cap_and_then_gathered(launches):
    step_of([ParamCase((3,)), ParamCase((9,))], steps=3, max_relative_step=0.01)
    measuring = [arguments["unmeasured"] is not None for name, _, arguments in launches if name == "grad_stats_kernel"]
    assert measuring == [True, False, False]
    assert len(launches) == 2 * 3


class AsLargeAsGradients(gradops.Adam):
    """Adam whose rule is said to have updates as large as its gradients."""

    rule = dataclasses.replace(gradops.Adam.rule, scale_free=False)


@interpreted
@pytest.mark.parametrize("grad_size", [0.0, 1e-3, 1.0, 1e20])
@pytest.mark.parametrize("settings", [{}, {"max_norm": 0.5, "l1": 0.01}, {"clip_value": 0.1}])
def test_rates_are_bounded_by_the_size_of_the_clipped_gradient(grad_size, settings, launches):
    torch.manual_seed(5)
    cap, decay, l1 = gradops.RelativeStepCap(0.05, floor=0.0), 0.1, settings.get("l1", 0.0)
    params = [torch.randn(CHUNK + 5), torch.randn(7)]
    values, grads = [param.double() for param in params], [grad_size * torch.randn_like(param) for param in params]
    settings = {"weight_decay": decay, "max_relative_step": cap, **settings}
    optimizer = AsLargeAsGradients(params, lr=0.2, eps=0.0, backend="triton", **settings)
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()
    assert [name for name, _, _ in launches] == ["grad_stats_kernel", "plan_rows_kernel", "update_step_kernel"]
    for index, (param, value, grad) in enumerate(zip(params, values, grads, strict=True)):
        grad = grad.double().clamp(-settings.get("clip_value", torch.inf), settings.get("clip_value", torch.inf))
        rms, grad_rms = (of.square().mean().sqrt() for of in (value, grad * optimizer.stats.clip_coef.double()))
        limit = cap.cap * rms / (grad_rms + decay * rms + l1)
        # Adam's first update moves every element by the rate.
        moved = (param.double() - value).abs()
        torch.testing.assert_close(moved, limit.clamp(max=0.2).expand_as(moved), rtol=1e-5, atol=1e-6)
        assert optimizer.stats.capped[index] == (limit < 0.2)


def bytes_of_a_step(monkeypatch, cases, **settings):
    """Bytes that the third step of AdamW moves; in all three the memory around the step's tensors is out of bounds."""
    optimizer = step_of(cases, steps=0, **settings)
    params, launch, meter = optimizer.param_groups[0]["params"], triton_step.launch, Meter()

    def bounded(kernel, programs, arguments):
        meter.allow(*params, *(param.grad for param in params))
        meter.allow(*(value for state in optimizer.state.values() for value in state.values()))
        meter.allow(*(value for value in arguments.values() if torch.is_tensor(value)))
        launch(kernel, programs, arguments)

    monkeypatch.setattr(triton_step, "launch", bounded)
    for _ in range(3):
        meter.loaded = meter.stored = 0
        with metered(meter):
            step(optimizer, cases)
    return meter.loaded + meter.stored


@interpreted
@pytest.mark.parametrize(
    ("dtype", "settings", "expected"),
    [
        (torch.float32, {}, 32),
        (torch.float32, {"track_updates": True}, 32),
        (torch.bfloat16, {}, 24),
        (torch.bfloat16, {"master_weights": True}, 30),
        (torch.bfloat16, {"rounding": "kahan"}, 28),
        (torch.float32, {"moments_dtype": torch.bfloat16}, 24),
    ],
)
def test_a_step_moves_the_promised_bytes_and_small_tables(dtype, settings, expected, monkeypatch):
    """Gradient twice, parameter and moments read and written once; tables: under 4 KiB a chunk and 3 KiB a row."""
    chunks = 6
    case = ParamCase((chunks * CHUNK,), dtype, grad_dtype=dtype)
    extra = bytes_of_a_step(monkeypatch, [case], max_norm=1.0, **settings) - expected * chunks * CHUNK
    assert 0 <= extra < 4096 * chunks + 3 * 1024 + 2 * 256 * 32
    assert extra < 0.02 * expected * chunks * CHUNK


@interpreted
@pytest.mark.parametrize(
    "settings",
    [
        {"max_relative_step": 0.02, "norm_type": 3.0, "track_updates": True},
        {"clip_mode": "agc", "max_norm": 0.01},
    ],
    ids=str,
)
def test_tails_strides_and_misalignment_stay_inside_their_tensors(settings, monkeypatch):
    cases = [
        ParamCase((CHUNK + 5,)),
        ParamCase((2, 3, 4, 5), layout="channels_last", grad_layout="strided"),
        ParamCase((40, 30), layout="transposed"),
        ParamCase((999,), torch.bfloat16, layout="misaligned", grad_layout="misaligned"),
        ParamCase((0,)),
        ParamCase(()),
    ]
    assert bytes_of_a_step(monkeypatch, cases, **settings) > 0


@interpreted
@pytest.mark.parametrize("settings", [{}, {"norm_type": 3.0, "max_relative_step": 0.01}])
@pytest.mark.parametrize("magnitude", [1.0, 1e20])
def test_any_order_of_programs_gives_the_same_bits(settings, magnitude):
    cases = [
        ParamCase((2 * CHUNK + 5,)),
        ParamCase((33,), magnitude=magnitude),
        ParamCase((7,)),
        ParamCase((CHUNK + 1,)),
    ]
    expected = step_of(cases, max_norm=1.0, track_updates=True, **settings)
    with shuffled(0):
        shuffled_step = step_of(cases, max_norm=1.0, track_updates=True, **settings)
    assert_bitwise(snapshot(shuffled_step), snapshot(expected))
    for name in ("norms", "update_ratio", "param_rms"):
        assert_same_bits(getattr(shuffled_step.stats, name), getattr(expected.stats, name), name)


@interpreted
def test_layout_and_alignment_do_not_change_a_bit():
    plain = [ParamCase((CHUNK,), dtype) for dtype in (torch.float32, torch.bfloat16)]
    moved = [ParamCase((CHUNK,), case.dtype, layout="misaligned", grad_layout="strided") for case in plain]
    settings = {"max_norm": 1.0, "max_relative_step": 0.01}
    assert_bitwise(snapshot(step_of(moved, **settings)), snapshot(step_of(plain, **settings)))


@triton.jit
def copy_kernel(source, target, n, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    tl.store(target + places, tl.load(source + places).to(tl.bfloat16), mask=places < n)


@interpreted
def test_the_interpreter_rounds_to_bfloat16_as_torch_does():
    source = torch.cat([torch.randn(4096), torch.tensor([1e-40, -1e-40, 3.4e38, torch.inf, -torch.inf, torch.nan])])
    source = torch.cat([source, torch.zeros(8192 - source.numel())])
    target = torch.empty(8192, dtype=torch.bfloat16)
    copy_kernel[(1,)](source, target, 8192, 8192)
    assert torch.equal(target.nan_to_num(7.0), source.bfloat16().nan_to_num(7.0))


@interpreted
def test_the_meter_catches_a_load_behind_the_end():
    source, target = torch.zeros(60), torch.zeros(64, dtype=torch.bfloat16)
    meter = Meter()
    meter.allow(source, target)
    with metered(meter), pytest.raises(Exception, match=r"load out of bounds: 4 lanes"):
        copy_kernel[(1,)](source, target, 60, 64)


@triton.jit
def order_kernel(tickets, target):
    tl.store(target + tl.program_id(0), tl.atomic_add(tickets, 1))


@interpreted
def test_shuffled_programs_show_what_depends_on_their_order():
    tickets, target = torch.zeros(1, dtype=torch.int32), torch.zeros(50, dtype=torch.int32)
    with shuffled(0):
        order_kernel[(50,)](tickets, target)
    assert target.tolist() != list(range(50))
    assert sorted(target.tolist()) == list(range(50))


# By file, what is fast enough for every run: words of the names of its tests.
QUICK = {
    "step/test_activation_stats.py": "any_tensor or huge_and_tiny or edges or nothing_finite or far_from or drops",
    "step/test_grad_stats.py": "huge_and_tiny",
    "step/test_adam_step.py": "any_sequence or expanded or side_by_side or rounded_to_nearest or own_hyperparameters "
    "or trap_sizes",
    "step/test_decide.py": "first_step_may or tiny_norm or all_groups or tells_nan",
    "step/test_agc.py": "by_its_own or one_unit or huge_and or very_different or spared or mid_run or half_precision",
    "step/test_first_moment.py": "beta1_0 or side_by_side or off_by and True",
    "step/test_l1.py": "after_clipping or own_penalty",
    "step/test_master_weights.py": "any_sequence or wherever_it_lies and bfloat16 or edited",
    "step/test_moments_dtype.py": "any_sequence or wherever_the and (shape2 or shape3 or shape4)",
    "step/test_relative_step.py": "any_sequence or floor or gathered_while or read_anew",
    "step/test_rounding.py": "any_sequence or wherever_it_lies and bfloat16 or edited or overflowing",
    "step/test_spike_guard.py": "guard3 or recovers or never or beyond_float32 or inf_or or edited or set_later",
    "optimizer/test_stats.py": "promised or one_step or left_as_backward",
    "step/test_update_stats.py": "contiguous or half_precision or magnitudes or one_step or zero or skipped or lets_it",
    "backends/test_rule_faults.py": "triton-lars or triton-sgd or late",
    "rules/test_bound.py": "cap_times or nothing_bounds",
    "rules/test_late_moments.py": "",
    "rules/test_steps.py": "any_sequence or everything and kahan",
}


@outside
def test_this_file_passes_in_the_interpreter():
    run_interpreted("backends/test_triton_step.py")


@outside
@pytest.mark.parametrize("half", [0, 1])  # a pytest is slow to start
def test_shared_bodies_pass_in_the_interpreter(half):
    names = list(QUICK)[half::2]
    words = [Path(name).stem + (QUICK[name] and f" and ({QUICK[name]})") for name in names]
    run_interpreted(*names, "-k", " or ".join(f"({each})" for each in words))


@outside
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "step/test_adam_step.py",
        "step/test_agc.py",
        "step/test_decide.py",
        "step/test_first_moment.py",
        "step/test_grad_stats.py",
        "step/test_l1.py",
        "step/test_loss_scale.py",
        "step/test_master_weights.py",
        "step/test_moments_dtype.py",
        "step/test_relative_step.py",
        "step/test_rounding.py",
        "backends/test_rule_faults.py",
        "backends/test_same_bits.py",
        "step/test_spike_guard.py",
        "optimizer/test_stats.py",
        "step/test_step_plan.py",
        "step/test_update_stats.py",
        "rules/test_bound.py",
        "rules/test_late_moments.py",
        "rules/test_steps.py",
    ],
)
def test_all_shared_bodies_pass_in_the_interpreter(name):
    run_interpreted(name)
