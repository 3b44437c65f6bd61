"""The phases of a step as launches of their own, as torch.ops.gradops runs them, against those operators on the CPU."""

import ctypes
import math

import emulator
import pytest
import torch
from beside import assert_same_bits
from cases import ParamCase
from one_pass import HYPERS, PIECE, Address, Group, Real, Row, Step, View, library, memory_of, views_of

import gradops  # noqa: F401  registers the operators

CASES = [
    ParamCase((PIECE * 17 + 5,)),
    ParamCase((3,)),
    ParamCase((0,)),
    ParamCase((PIECE * 2,), grad_dtype=torch.bfloat16),
    ParamCase((40,), grad_layout="misaligned"),
]
NOTHING, INV_SCALE, CLIP_COEF = range(3)


@pytest.fixture(scope="module")
def lib():
    lib = library()
    lib.plan_piece.argtypes = [Address] * 5 + [ctypes.c_int64] * 2
    lib.move_loss_scale.argtypes = [Address] * 3 + [ctypes.c_int64]
    return lib


def view(tensor):
    kinds = [torch.float32, torch.bfloat16, torch.float16]
    return View(tensor.data_ptr(), None, kinds.index(tensor.dtype))


def pointers(tensors):
    return (Address * len(tensors))(*(tensor.data_ptr() or 16 for tensor in tensors))


def measure(lib, grads, scale_by, max_norm=math.inf, loss_scale=1.0, blocks=2):
    """grad_norm, clip_coef and found_inf, and norms, abs_max and nonfinite of each; scales `grads` in place."""
    views = ({"param": view(grad), "grad": view(grad)} for grad in grads)
    rows = (Row * len(grads))(*(Row(views_of(v), numel=g.numel()) for v, g in zip(views, grads, strict=True)))
    plan = lib.plan_new(b"adam", ctypes.addressof(rows), len(grads), blocks, 0, 0)
    scalars, scale = torch.zeros(5), torch.tensor(loss_scale)
    norms, abs_max = torch.zeros(len(grads)), torch.zeros(len(grads))
    nonfinite = torch.zeros(len(grads), dtype=torch.int64)
    spec = Step(max_norm, 2.0, math.inf, math.inf, loss_scale=scale.data_ptr())
    for name, tensor in (("scalars", scalars), ("norms", norms), ("abs_max", abs_max), ("nonfinite", nonfinite)):
        setattr(spec, name, tensor.data_ptr())
    addresses, group = pointers(grads), Group()
    arrays = {"stats": [memory_of(t) for t in (scalars, norms, abs_max, nonfinite)], "scale": memory_of(scale)}
    with emulator.watching(lib, seed=7, grad=[memory_of(grad) for grad in grads], **arrays) as launches:
        of = [ctypes.addressof(struct) for struct in (spec, addresses, group)]
        lib.plan_piece(plan, of[0], None, of[1], of[2], 0, scale_by)
    lib.plan_delete(plan)
    assert [launch.faults for launch in launches] == [[], []]
    return scalars, norms, abs_max, nonfinite


@pytest.mark.parametrize("value", [None, math.inf, math.nan])
def test_statistics_equal_the_operator(lib, value):
    grads = [case.grad() for case in CASES]
    if value is not None:
        grads[3][-1] = value
    kept = [grad.clone() for grad in grads]
    scalars, *rows = measure(lib, grads, NOTHING, loss_scale=8.0)
    expected = torch.ops.gradops.grad_stats(grads, torch.tensor(8.0))
    torch.testing.assert_close(scalars[0], expected[0], rtol=2e-6, atol=0, equal_nan=True)
    for mine, theirs in zip(rows, expected[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=0, equal_nan=True)
    for grad, before in zip(grads, kept, strict=True):
        assert_same_bits(grad, before)


def test_clipping_equals_the_operator(lib):
    grads = [case.grad() for case in CASES]
    expected = [grad.clone() for grad in grads]
    norm = torch.ops.gradops.clip_grad_norm_(expected, 1.0)
    scalars, *_ = measure(lib, grads, CLIP_COEF, max_norm=1.0)
    torch.testing.assert_close(scalars[0], norm, rtol=2e-6, atol=0)
    for mine, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-7 if mine.dtype == torch.bfloat16 else 4e-6, atol=0)


def test_clipping_leaves_what_is_not_finite(lib):
    grads = [case.grad() for case in CASES]
    grads[0][0] = math.nan
    kept = [grad.clone() for grad in grads]
    measure(lib, grads, CLIP_COEF, max_norm=1.0)
    for grad, before in zip(grads, kept, strict=True):
        assert_same_bits(grad, before)


@pytest.mark.parametrize("value", [None, math.inf])
def test_unscaling_equals_the_operator_bit_for_bit(lib, value):
    grads = [case.grad() for case in CASES]
    if value is not None:
        grads[0][7] = value
    expected = [grad.clone() for grad in grads]
    found_inf = torch.ops.gradops.unscale_(expected, torch.tensor(96.0))
    scalars, *_ = measure(lib, grads, INV_SCALE, loss_scale=96.0)
    assert scalars[2] == found_inf
    for mine, theirs in zip(grads, expected, strict=True):
        assert_same_bits(mine, theirs)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize(("decoupled", "amsgrad"), [(False, False), (True, True)])
def test_update_equals_the_operator_bit_for_bit(lib, decoupled, amsgrad, found_inf):
    params = [case.param().detach() for case in CASES]
    grads = [case.grad() for case in CASES]
    moments = [[torch.rand(param.shape) for param in params] for _ in range(3)]
    steps = [torch.tensor(4.0) for _ in params]
    scalars = [torch.tensor(value) for value in (96.0, 0.25, found_inf)]
    expected = [[tensor.clone() for tensor in part] for part in (params, *moments, steps)]
    torch.ops.gradops.adam_step_(
        expected[0], grads, expected[1], expected[2], expected[3] if amsgrad else [], expected[4],
        torch.tensor(0.1, dtype=torch.float64), grad_scale=scalars[0], clip_coef=scalars[1], found_inf=scalars[2],
        weight_decay=0.1, decoupled=decoupled,
    )  # fmt: skip
    own = (Real * HYPERS)(0.9, 0.999, 1e-8, float(amsgrad))
    group = Group(lr=0.1, weight_decay=0.1, own=own, decoupled=decoupled)
    update(lib, params, grads, moments, steps, scalars, group)
    for mine, theirs in zip(
        (params, *moments[: 2 + amsgrad], steps), expected[: 3 + amsgrad] + expected[4:], strict=True
    ):
        for tensor, other in zip(mine, theirs, strict=True):
            assert_same_bits(tensor, other)


def update(lib, params, grads, moments, steps, scalars, group):
    tensors = zip(params, grads, *moments, steps, strict=True)
    slots = ("param", "grad", 0, 1, 2)
    rows = [
        Row(views_of(dict(zip(slots, map(view, of), strict=False))), step=of[5].data_ptr(), numel=of[0].numel())
        for of in tensors
    ]
    table = (Row * len(rows))(*rows)
    plan = lib.plan_new(b"adam", ctypes.addressof(table), len(rows), 2, 0, 0)
    spec = Step(math.inf, 2.0, math.inf, math.inf)
    spec.loss_scale, spec.found_inf = scalars[0].data_ptr(), scalars[2].data_ptr()
    addresses = pointers(grads)
    arrays = {"written": [memory_of(t) for part in (params, *moments, steps) for t in part]}
    arrays["read"] = [emulator.read_only(memory_of(tensor)) for tensor in (*grads, *scalars)]
    with emulator.watching(lib, seed=9, **arrays) as launches:
        of = [ctypes.addressof(struct) for struct in (spec, addresses, group)]
        lib.plan_piece(plan, of[0], scalars[1].data_ptr(), of[1], of[2], 1, 0)
    lib.plan_delete(plan)
    assert [launch.faults for launch in launches] == [[], []]


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("tracker", [0, 2])
def test_loss_scale_moves_as_the_operator_moves_it(lib, found_inf, tracker):
    pairs = [(torch.tensor(512.0), torch.tensor(tracker)) for _ in range(2)]
    seen = torch.tensor(found_inf)
    torch.ops.gradops.update_loss_scale_(*pairs[0], seen, growth_interval=3)
    with emulator.watching(lib, state=[memory_of(t) for t in pairs[1]], seen=memory_of(seen)) as launches:
        lib.move_loss_scale(*(tensor.data_ptr() for tensor in (*pairs[1], seen)), 3)
    assert launches[0].faults == []
    assert pairs[0] == pairs[1]
