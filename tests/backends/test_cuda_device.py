"""What only a GPU can show: graphs, streams, launches and the absence of synchronisation.

What a step computes is tested elsewhere, by the same test bodies on the CPU, in the emulator and on a GPU.
"""

import contextlib
import copy
import math
import warnings

import pytest
import torch
from beside import assert_bitwise, assert_same_bits, params_of, snapshot
from cases import CHUNK
from rules import CLASSES, table_of

import gradops
from gradops.backends import choose

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
# What one step gives the GPU to do.
KERNELS = {"native": ["one_pass_step_kernel"], "triton": ["grad_stats_kernel", "update_step_kernel"]}

SHAPES = [(1,), (17,), (64, 33), (0,), (3, 3, 16, 16), (CHUNK - 1,), (CHUNK + 1,), (300_001,)]
# More gradients than the 32,764 bytes of a launch's parameters can point to.
MANY = [(8,)] * 5000
STATS = ("grad_norm", "clip_coef", "found_inf", "loss_scale", "steps_taken", "steps_skipped", "norms", "nonfinite")
DYNAMIC = gradops.DynamicLossScale(init_scale=1024.0, growth_interval=5)
SETTINGS = [
    {},
    {"max_norm": 1.0},
    {"max_norm": 1.0, "loss_scale": DYNAMIC},
    {"clip_value": 0.5, "max_relative_step": 0.05, "loss_scale": DYNAMIC},
]


@pytest.fixture(autouse=True, params=KERNELS)
def kernels(request, monkeypatch):
    """The kernels of a step; each test runs with both backends that have some."""
    if missing := choose.missing(request.param, "cuda"):
        pytest.skip(missing)
    backend_for = choose.backend_for
    monkeypatch.setattr(
        choose,
        "backend_for",
        lambda device, rule=None, wanted=None: backend_for(device, rule, wanted or request.param),
    )
    return KERNELS[request.param]


def make_optimizer(shapes=SHAPES, device="cuda", lr=0.1, cls=gradops.AdamW, **settings):
    """The same values whenever it is called; every other parameter is bfloat16, and so is its gradient."""
    generator = torch.Generator().manual_seed(5)
    params = [torch.randn(shape, generator=generator) for shape in shapes]
    params = [values.to(device, [torch.float32, torch.bfloat16][row % 2]) for row, values in enumerate(params)]
    for param in params:
        param.requires_grad_().grad = torch.zeros_like(param)
    return cls(params, **settings, lr=lr)


def feed(optimizer, step, overflows=()):
    """Gradients of a step, written where the last ones lie."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params_of(optimizer):
        param.grad.copy_(torch.randn(param.shape, generator=generator))
    if step in overflows:
        params_of(optimizer)[-1].grad[-1] = math.inf


def scale_and_step(optimizer):
    if optimizer.loss_scale is not None:
        optimizer.scale(torch.zeros((), device=optimizer.stats.grad_norm.device))
    optimizer.step()


def train(optimizer, steps, once=None, overflows=(), lr=None):
    """Feeds and steps; returns what each step's stats were."""
    history = []
    for step in steps:
        feed(optimizer, step, overflows)
        if lr is not None:
            lr.fill_(0.1 / (1 + step))
        (once or (lambda: scale_and_step(optimizer)))()
        history.append([getattr(optimizer.stats, name).clone() for name in STATS])
    return history


def capture(optimizer):
    """A replay of one step; the optimizer must have stepped before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scale_and_step(optimizer)
    return graph.replay


@contextlib.contextmanager
def synchronisation_is_an_error():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launches(function):
    """Names of the kernels, copies and fills that the GPU was given."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        function()
        torch.cuda.synchronize()
    on_gpu = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [event.name for event in on_gpu if not event.is_user_annotation]


EMA = gradops.WeightEma(0.9, tau=20.0, every=2)


def replayed():
    """AdamW's settings, then each class with the last of its options, averaged."""
    for at, settings in enumerate(SETTINGS):
        yield pytest.param(settings, id=f"AdamW-{at}")
    averaged = {"max_norm": 1.0, "loss_scale": DYNAMIC, "ema": EMA}
    for cls in CLASSES:
        options = {key: value for key, value in [*table_of(cls).options.values()][-1].items() if key != "lr"}
        yield pytest.param({**options, **averaged, "cls": cls}, id=f"{cls.__name__}-averaged")
    yield pytest.param({"ema": EMA, "master_weights": True}, id="masters-averaged")


@pytest.mark.parametrize("settings", list(replayed()))
def test_100_replays_equal_100_eager_steps_bitwise(settings):
    rates = [torch.tensor(0.1, device="cuda") for _ in range(2)]
    eager, replayed = (make_optimizer(lr=lr, **settings) for lr in rates)
    for optimizer, lr in zip((eager, replayed), rates, strict=True):
        train(optimizer, range(3), lr=lr)
    replay = capture(replayed)
    assert_bitwise(snapshot(replayed), snapshot(eager))  # capturing has not stepped
    steps, overflows = range(3, 103), (10, 11, 60)
    expected = train(eager, steps, overflows=overflows, lr=rates[0])
    found = train(replayed, steps, replay, overflows, rates[1])
    assert_bitwise(snapshot(replayed), snapshot(eager))
    for step, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        for name, value, wanted in zip(STATS, mine, theirs, strict=True):
            assert_same_bits(value, wanted, f"{name} of replay {step}")
    assert int(replayed.stats.steps_skipped) == len(overflows)


def test_float_lr_under_capture_is_baked_in_with_one_warning():
    optimizer = make_optimizer()
    train(optimizer, range(2))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replay = capture(optimizer)
        capture(optimizer)
    assert len([w for w in caught if "lr" in str(w.message) and "tensor" in str(w.message)]) == 1
    reference = copy.deepcopy(optimizer)
    for param, theirs in zip(params_of(optimizer), params_of(reference), strict=True):
        theirs.grad = torch.zeros_like(param)
    optimizer.param_groups[0]["lr"] = 1e9
    train(optimizer, [2], replay)
    train(reference, [2])
    assert_bitwise(snapshot(optimizer), snapshot(reference))


def test_linking_anew_leaves_a_captured_graph_its_own_table():
    captured, reference = make_optimizer(), make_optimizer()
    train(captured, range(2))
    train(reference, range(2))
    replay = capture(captured)
    at_capture = [param.grad for param in params_of(captured)]
    for optimizer in (captured, reference):  # eager steps from other gradients, one of them absent
        for param in params_of(optimizer):
            param.grad = torch.zeros_like(param)
        params_of(optimizer)[1].grad = None
        for row, param in enumerate(params_of(optimizer)):
            if param.grad is not None:
                param.grad.fill_(0.01 * row)
        optimizer.step()
    for optimizer in (captured, reference):
        for param, grad in zip(params_of(optimizer), at_capture, strict=True):
            param.grad = grad if optimizer is captured else torch.zeros_like(grad)
    train(captured, [5], replay)
    train(reference, [5])
    assert_bitwise(snapshot(captured), snapshot(reference))


@pytest.mark.parametrize("shapes", [SHAPES, MANY], ids=["few", "more_than_a_launch_points_to"])
@pytest.mark.parametrize("settings", [*SETTINGS, {"ema": EMA}, *({"cls": cls} for cls in CLASSES)])
def test_no_step_synchronises_even_when_gradients_move(settings, shapes):
    optimizer = make_optimizer(shapes, **settings)
    train(optimizer, range(2))
    moved = [[torch.ones_like(param) for param in params_of(optimizer)] for _ in range(3)]
    with synchronisation_is_an_error():
        for grads in moved:
            for param, grad in zip(params_of(optimizer), grads, strict=True):
                param.grad = grad
            scale_and_step(optimizer)
            scale_and_step(optimizer)
    assert int(optimizer.stats.steps_taken) == 8


@pytest.mark.parametrize("scaler_class", [torch.amp.GradScaler, gradops.GradScaler])
def test_no_step_under_a_grad_scaler_synchronises(scaler_class):
    optimizer, scaler = make_optimizer(max_norm=1.0), scaler_class("cuda")
    loss = torch.ones((), device="cuda")
    for repeat in range(3):
        with synchronisation_is_an_error() if repeat else contextlib.nullcontext():
            scaler.scale(loss)
            scaler.step(optimizer)
            scaler.update()
    assert int(optimizer.stats.steps_taken) == 3


@pytest.mark.parametrize(
    "settings",
    [
        *({}, *SETTINGS[1:2], {"max_relative_step": 0.05}, {"ema": EMA}),
        *({"cls": cls} for cls in CLASSES if not cls.rule.needs_norms),  # which Triton plans in one launch more
    ],
)
def test_a_step_is_its_kernels_and_nothing_else(settings, kernels):
    optimizer = make_optimizer(**settings)
    train(optimizer, range(2))
    found = launches(optimizer.step)
    assert len(found) == len(kernels), found
    assert all(kernel in name for kernel, name in zip(kernels, found, strict=True)), found


def test_a_step_from_more_gradients_than_a_launch_points_to_is_at_most_a_copy_more(kernels):
    optimizer = make_optimizer(MANY)
    train(optimizer, range(2))
    found = launches(optimizer.step)
    assert len([name for name in found if not name.startswith("Mem")]) == len(kernels), found
    assert len(found) <= len(kernels) + 1, found


def test_a_steady_step_allocates_nothing():
    optimizer = make_optimizer(max_norm=1.0, max_relative_step=0.05)
    train(optimizer, range(2))
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    for _ in range(10):
        optimizer.step()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


def test_a_model_may_move_to_the_gpu_before_the_first_step():
    param = torch.randn(9).requires_grad_()
    optimizer = gradops.AdamW([param], max_norm=1.0, loss_scale="dynamic")
    param.data = param.data.cuda()
    optimizer.backward((param**2).sum())
    optimizer.step()
    assert optimizer.stats.norms.is_cuda
    assert int(optimizer.stats.steps_taken) == 1


def test_gradients_are_left_as_backward_made_them():
    optimizer = make_optimizer(max_norm=0.1, clip_value=0.5)
    feed(optimizer, 0)
    before = [param.grad.clone() for param in params_of(optimizer)]
    optimizer.step()
    for param, grad in zip(params_of(optimizer), before, strict=True):
        assert_same_bits(param.grad, grad)


def test_a_step_runs_on_the_current_stream():
    optimizer, reference = make_optimizer(max_norm=1.0), make_optimizer(max_norm=1.0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in range(5):
            torch.cuda._sleep(10_000_000)  # a step on another stream would read the gradients of the step before
            train(optimizer, [step])
    torch.cuda.current_stream().wait_stream(side)
    train(reference, range(5))
    assert_bitwise(snapshot(optimizer), snapshot(reference))


def test_optimizers_on_several_streams_do_not_disturb_each_other():
    """Each grid wants the whole GPU, and other people's kernels keep parts of it busy."""
    alone = make_optimizer(max_norm=1.0)
    train(alone, range(20))
    optimizers, streams = [make_optimizer(max_norm=1.0) for _ in range(3)], [torch.cuda.Stream() for _ in range(3)]
    busy, matrix = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    for step in range(20):
        with torch.cuda.stream(busy):
            matrix = (matrix @ matrix).tanh()
        for optimizer, stream in zip(optimizers, streams, strict=True):
            with torch.cuda.stream(stream):
                train(optimizer, [step])
    torch.cuda.synchronize()
    for optimizer in optimizers:
        assert_bitwise(snapshot(optimizer), snapshot(alone))


def test_the_same_bits_from_run_to_run():
    runs = [make_optimizer(max_norm=1.0, max_relative_step=0.05) for _ in range(3)]
    for optimizer in runs:
        train(optimizer, range(10), overflows=(4,))
    for optimizer in runs[1:]:
        assert_bitwise(snapshot(optimizer), snapshot(runs[0]))


@needs_two
def test_a_step_runs_on_its_parameters_device_whichever_is_current():
    optimizer, reference = make_optimizer(device="cuda:1"), make_optimizer(device="cuda:0")
    with torch.cuda.device(0):
        train(optimizer, range(3))
        train(reference, range(3))
        assert torch.cuda.current_device() == 0
    for mine, theirs in zip(params_of(optimizer), params_of(reference), strict=True):
        assert mine.device == torch.device("cuda:1")
        assert_same_bits(mine.detach().cpu(), theirs.detach().cpu())
