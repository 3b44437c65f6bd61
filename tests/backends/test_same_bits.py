"""The same bits from run to run, for any number of threads and for every vector width."""

import contextlib
import itertools
import math

import pytest
import torch
from beside import assert_bitwise, snapshot
from cases import CHUNK, ParamCase, needs_native
from rules import CLASSES, table_of

import gradops

NORM_TYPES = [1.0, 2.0, math.inf, 3.0, 0.5]
CASES = [
    ParamCase((5 * CHUNK + 13,)),
    ParamCase((3, 2731)),
    ParamCase((17,), magnitude=1e20),
    ParamCase((33,), magnitude=1e-25),
    ParamCase((CHUNK + 1,), torch.bfloat16, grad_dtype=torch.bfloat16),
    ParamCase((CHUNK - 7,), torch.float16, grad_dtype=torch.float16),
    ParamCase((40, 30), layout="transposed", grad_layout="contiguous"),
    ParamCase((2, 3, 4, 5), layout="channels_last", grad_layout="strided"),
    ParamCase((999,), layout="misaligned", grad_layout="misaligned"),
    ParamCase((0,)),
    *[ParamCase((n,)) for n in range(1, 40)],
]


def capabilities():
    """The vector widths this machine has, widest last."""
    found = []
    before = gradops._C.cpu_capability()
    for name in ("baseline", "avx2", "avx512"):
        with contextlib.suppress(RuntimeError, ValueError):
            gradops._C.set_cpu_capability(name)
            found.append(name)
    gradops._C.set_cpu_capability(before)
    return found


@contextlib.contextmanager
def machine(threads=None, capability=None):
    threads_before, capability_before = torch.get_num_threads(), gradops._C.cpu_capability()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        if capability is not None:
            gradops._C.set_cpu_capability(capability)
        yield
    finally:
        torch.set_num_threads(threads_before)
        gradops._C.set_cpu_capability(capability_before)


def run(norm_type=2.0, cls=gradops.AdamW, steps=3, **settings):
    """Parameters, state and stats after a few steps; the same random numbers each time."""
    torch.manual_seed(11)
    optimizer = cls([case.param() for case in CASES], **{"lr": 0.1, "norm_type": norm_type, **settings})
    for step in range(steps):
        for row, (case, param) in enumerate(zip(CASES, optimizer.param_groups[0]["params"], strict=True)):
            grad = case.grad()
            param.grad = None if (row + step) % 7 == 0 else grad
        optimizer.step()
    stats = optimizer.stats
    numbers = [stats.grad_norm, stats.clip_coef, stats.norms, stats.abs_max]
    params, states = snapshot(optimizer)
    return params + [number.clone() for number in numbers], states


SETTINGS = {
    "plain": {},
    "clipped": {"max_norm": 1.0, "clip_value": 1e19},
    "capped": {"max_norm": 1.0, "max_relative_step": 0.05, "weight_decay": 0.1, "amsgrad": True},
    "master": {"master_weights": True, "max_relative_step": 0.05},
    "kahan": {"rounding": "kahan", "max_relative_step": 0.05},
    "agc": {"clip_mode": "agc", "max_norm": 0.01, "track_updates": True},
    "adam": {"cls": gradops.Adam, "weight_decay": 0.1, "maximize": True},
}


@needs_native
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_one_thread_and_several_give_the_same_bits(norm_type, settings):
    with machine(threads=1):
        alone = run(norm_type, **settings)
    for threads in (2, 3, 8):
        with machine(threads=threads):
            assert_bitwise(run(norm_type, **settings), alone)


@needs_native
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_every_vector_width_gives_the_same_bits(norm_type, settings):
    names = capabilities()
    with machine(capability="baseline"):
        baseline = run(norm_type, **settings)
    for name in names[1:]:
        with machine(capability=name):
            assert_bitwise(run(norm_type, **settings), baseline)


def every_rule():
    """The last options of each class, averaged; slow but for one with each kind of moment."""
    averaged = {"max_norm": 1.0, "ema": gradops.WeightEma(0.75)}
    quick = (gradops.SGD, gradops.LARS, gradops.NAdam)
    for cls in CLASSES:
        settings = {**[*table_of(cls).options.values()][-1], **averaged, "cls": cls}
        yield pytest.param(settings, id=cls.__name__, marks=[] if cls in quick else [pytest.mark.slow])


@needs_native
@pytest.mark.parametrize("settings", list(every_rule()))
def test_threads_and_vector_widths_give_every_rule_the_same_bits(settings):
    with machine(threads=1, capability="baseline"):
        expected = run(**settings)
    for threads, name in itertools.product((1, 2, 3), capabilities()):
        with machine(threads=threads, capability=name):
            assert_bitwise(run(**settings), expected)


@needs_native
def test_this_machine_compares_more_than_one_width():
    """Otherwise the test above says nothing; every x86-64 server of the last decade has AVX2."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("no vector extension here")
    assert len(capabilities()) >= 2


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_runs_repeat_to_the_bit(norm_type):
    first = run(norm_type, **SETTINGS["capped"])
    for _ in range(3):
        assert_bitwise(run(norm_type, **SETTINGS["capped"]), first)


@pytest.mark.usefixtures("backend")
def test_bits_do_not_depend_on_the_alignment_of_memory():
    results = []
    for layout in ("contiguous", "misaligned"):
        torch.manual_seed(1)
        case = ParamCase((3 * CHUNK + 5,), layout=layout, grad_layout=layout)
        param = case.param()
        optimizer = gradops.AdamW([param], max_norm=0.1, max_relative_step=0.05)
        for _ in range(3):
            param.grad = case.grad()
            optimizer.step()
        results.append(snapshot(optimizer))
    assert_bitwise(*results)


@needs_native
def test_unknown_capability_is_refused():
    with pytest.raises((ValueError, RuntimeError), match="avx1024"):
        gradops._C.set_cpu_capability("avx1024")


@needs_native
@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_clip_grad_norm_gives_the_same_bits(norm_type):
    def clipped():
        torch.manual_seed(2)
        params = [torch.zeros(n).requires_grad_() for n in (1, 17, CHUNK + 1, 4 * CHUNK + 3)]
        for param in params:
            param.grad = torch.randn_like(param)
        norm = gradops.clip_grad_norm_(params, 0.5, norm_type)
        return [norm, *(param.grad for param in params)], []

    with machine(threads=1, capability="baseline"):
        expected = clipped()
    for name in capabilities():
        for threads in (1, 2):
            with machine(threads=threads, capability=name):
                assert_bitwise(clipped(), expected)
