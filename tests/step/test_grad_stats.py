"""Norms, maxima and counts of non-finite values: of every size, magnitude and norm type, against the oracle."""

import math

import pytest
import tolerances as tol
import torch
from beside import assert_scalar
from cases import CHUNK, DTYPES, HOLDS_OTHER_DTYPES, LAYOUTS, NORM_TYPES, ParamCase, draw_grad, lay_out, param_cases
from hypothesis import given
from hypothesis import strategies as st

import gradops
from gradops import reference

EXACT = tol.Tolerance(0.0, 0.0, "the same float32 operations")


def measure(grads, **settings):
    """The stats of one step that moves nothing, for gradients of any dtype."""
    params = []
    for grad in grads:
        dtype = torch.float32 if HOLDS_OTHER_DTYPES else grad.dtype
        params.append(torch.zeros(grad.shape, dtype=dtype, device=grad.device).requires_grad_())
    for param, grad in zip(params, grads, strict=True):
        param.grad_dtype = grad.dtype
        param.grad = grad
    optimizer = gradops.Adam(params, lr=0.0, **settings)
    if optimizer.loss_scale is not None:
        optimizer.scale(torch.zeros(()))
    optimizer.step()
    return optimizer.stats


def assert_stats(grads, norm_type=2.0, clip_value=None, loss_scale=None):
    stats = measure(grads, norm_type=norm_type, clip_value=clip_value, loss_scale=loss_scale)
    expected = reference.grad_stats(grads, loss_scale or 1.0, clip_value, norm_type)
    plain = tol.NORM if clip_value is None else tol.CLAMPED_NORM
    norm = plain if norm_type in (1.0, 2.0, math.inf) else tol.power_norm(norm_type)
    assert_scalar(stats.grad_norm, expected.grad_norm, norm, "grad_norm")
    assert_scalar(stats.norms, expected.norms, norm, "norms")
    assert_scalar(stats.abs_max, expected.abs_max, EXACT, "abs_max")
    assert stats.nonfinite.tolist() == expected.nonfinite
    assert bool(stats.found_inf) == expected.found_inf
    return stats


@given(
    cases=st.lists(param_cases(), min_size=1, max_size=5),
    events=st.lists(st.sampled_from(["grad", "grad", "grad", math.inf, -math.inf, math.nan]), min_size=5, max_size=5),
    norm_type=st.sampled_from(NORM_TYPES) | st.floats(0.25, 20.0),
    clip_value=st.sampled_from([None, 0.25, 1e-6]),
    loss_scale=st.sampled_from([None, 1024.0, 3.0]),
    seed=st.integers(0, 2**32),
)
def test_any_gradients_equal_the_oracle(device, cases, events, norm_type, clip_value, loss_scale, seed):
    torch.manual_seed(seed)
    grads = [draw_grad(case, event, 1.0, device) for case, event in zip(cases, events, strict=False)]
    assert_stats(grads, norm_type, clip_value, loss_scale)


@pytest.mark.parametrize("norm_type", [*NORM_TYPES, 7.5, 20.0, 200.0])
@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e-25, 1e-20, 1e-10, 1.0, 1e10, 1e19, 1e20, 1e30, 1e34])
def test_huge_and_tiny_norms_are_right_in_relative_terms(magnitude, norm_type, device):
    if norm_type == 0.5 and magnitude == 1e34:
        pytest.skip("the true norm is beyond float32")
    assert_stats([torch.randn(100, device=device) * magnitude, torch.randn(9, device=device) * magnitude], norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
def test_huge_and_tiny_gradients_side_by_side(norm_type, device):
    """Between the elements of one chunk, between chunks, and between parameters."""
    mixed = torch.cat([torch.full((5,), 1e-25), torch.full((CHUNK,), 1e20), torch.full((CHUNK,), 1e-20)]).to(device)
    assert_stats([mixed, torch.full((3,), 1e-25, device=device), torch.full((3,), 1e22, device=device)], norm_type)
    assert_stats([torch.full((3,), 1e-25, device=device), torch.full((3,), 1e-22, device=device)], norm_type)


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("clip_value", [None, 1.0])
@pytest.mark.parametrize("poison", [1.0, math.inf, math.nan])
def test_whole_chunks_of_many_tensors(poison, clip_value, norm_type, device):
    """On the CPU four are read side by side, of one tensor or of several, but not where one of them has gaps."""
    sizes = [(5 * CHUNK + 7, 1.0), (CHUNK, 1e15), (CHUNK, 1e-15), (3 * CHUNK, 2.0), (CHUNK, 1.0), (4 * CHUNK, 3.0)]
    grads = [torch.randn(n, device=device) * size for n, size in sizes]
    grads[4] = lay_out(grads[4], "strided")
    grads[3][CHUNK + 5] *= poison
    assert_stats(grads, norm_type, clip_value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_subnormal_gradients_are_not_flushed(dtype, device):
    """Only the norm of float32 subnormals may lose bits: the contract covers norms that are normal numbers."""
    tiny = torch.finfo(dtype).smallest_normal / 4
    grad = torch.full((9,), tiny, dtype=dtype, device=device)
    stats = measure([grad])
    assert stats.abs_max.tolist() == [grad[0].item()]
    assert stats.grad_norm.item() == pytest.approx(3 * grad[0].item(), rel=1e-3)


def test_float16_norm_beyond_float16_is_finite(device):
    grads = [torch.full((4,), 38400.0, dtype=torch.float16, device=device)]
    assert assert_stats(grads).grad_norm.item() == 76800.0


@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
def test_one_bad_element_is_found_wherever_it_is(poison, place, n, device):
    grad = torch.randn(n, device=device)
    grad[{"first": 0, "middle": n // 2, "last": n - 1}[place]] = poison
    stats = assert_stats([torch.randn(5, device=device), grad, torch.randn(5, device=device)])
    assert stats.nonfinite.tolist() == [0, 1, 0]


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("clip_value", [None, 1.0])
def test_nan_wins_over_inf_in_norm_and_maximum(clip_value, norm_type, device):
    grads = [torch.tensor(row, device=device) for row in ([1.0, math.inf], [math.nan, math.inf], [-math.inf, math.nan])]
    stats = assert_stats(grads, norm_type, clip_value)
    assert [math.isnan(x) for x in stats.norms.tolist()] == [False, True, True]
    assert math.isnan(stats.grad_norm)


def test_nonfinite_counts_every_element(device):
    grad = torch.full((2 * CHUNK + 3,), math.nan, device=device)
    grad[::2] = -math.inf
    assert measure([grad]).nonfinite.tolist() == [2 * CHUNK + 3]


def test_infinity_that_only_unscaling_makes_is_found(device):
    """Elements are tested after the multiplication: 3e38 unscaled by 0.5 overflows, 3e38 unscaled by 2 does not."""
    grads = [torch.tensor([3e38], device=device)]
    assert bool(measure(grads, loss_scale=0.5).found_inf)
    assert not bool(measure(grads, loss_scale=2.0).found_inf)


def test_infinity_is_found_before_clip_value_hides_it(device):
    stats = measure([torch.tensor([math.inf, 0.0], device=device)], clip_value=1.0)
    assert bool(stats.found_inf)
    assert stats.grad_norm.item() == math.inf


def test_abs_max_is_of_values_before_clip_value(device):
    stats = measure([torch.tensor([-5.0, 3.0], device=device)], clip_value=1.0)
    assert stats.abs_max.tolist() == [5.0]
    assert stats.norms.tolist() == pytest.approx([math.sqrt(2)])


def test_finite_gradients_whose_norm_exceeds_float32_are_not_an_overflow(device):
    """found_inf is never inferred from the norm, and clipping still works."""
    param = torch.zeros(100, device=device).requires_grad_()
    param.grad = torch.full_like(param, 3e38)
    optimizer = gradops.Adam([param], lr=0.1, max_norm=1.0)
    optimizer.step()
    assert not bool(optimizer.stats.found_inf)
    assert optimizer.state[param]["exp_avg"].norm().item() == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_stats_do_not_depend_on_the_layout(dtype, layout, device):
    case = ParamCase((2, 3, 40, 50), grad_dtype=dtype, grad_layout=layout)
    assert_stats([case.grad(device=device), case.grad(device=device)])


@pytest.mark.parametrize("loss_scale", [3.0, 1024.0, 2.0**24, 2.0**-14, 7e-5])
def test_unscaling_multiplies_by_the_rounded_reciprocal(loss_scale, device):
    assert_stats([torch.randn(1000, device=device)], loss_scale=loss_scale)


def test_zero_elements_and_zero_gradients_have_norm_zero(device):
    stats = assert_stats(
        [torch.zeros(0, device=device), torch.zeros(5, device=device), torch.zeros(3, 0, device=device)]
    )
    assert (stats.grad_norm.item(), stats.norms.tolist()) == (0.0, [0.0, 0.0, 0.0])


def test_parameters_without_gradient_have_zero_rows(device):
    params = [torch.randn(4, device=device).requires_grad_() for _ in range(3)]
    optimizer = gradops.Adam(params, max_relative_step=1e-9)
    for param in params:
        param.grad = torch.full_like(param, math.inf)
    optimizer.step()
    params[0].grad = params[2].grad = None
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    assert optimizer.stats.norms.tolist() == [0.0, 2.0, 0.0]
    assert optimizer.stats.abs_max.tolist() == [0.0, 1.0, 0.0]
    assert optimizer.stats.nonfinite.tolist() == [0, 0, 0]
    assert optimizer.stats.capped.tolist() == [False, True, False]
