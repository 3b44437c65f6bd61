"""Statistics of activations: every backend against numpy in float64, on values of every size, dtype and layout."""

import math
import os

import pytest
import torch
from activation_oracle import BETWEEN_FLOATS, CHUNK, EDGES, agrees
from cases import DTYPES, LAYOUTS, lay_out, needs_native
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from gradops.backends import activations
from gradops.backends.torch import math as torch_math

# Started once more in Triton's interpreter by test_triton_step.py.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IMPLEMENTATIONS = ["triton"] if INTERPRETED else [pytest.param("operator", marks=needs_native), "python"]


def measured(x, near_zero=1e-3, how="operator"):
    if how == "triton":
        from gradops.backends.triton import activations as triton_activations

        return triton_activations.activation_stats(x, near_zero)
    return (torch.ops.gradops if how == "operator" else activations).activation_stats(x, near_zero)


def check(x, near_zero=1e-3, how="operator"):
    agrees(*measured(x, near_zero, how), x, near_zero)


@st.composite
def tensors(draw):
    shape = draw(st.sampled_from([(), (0,), (1,), (31,), (33,), (5, 7), (2, 3, 4, 5), (CHUNK + 1,), (3, CHUNK - 1)]))
    magnitude = draw(st.sampled_from([1.0, 1e-3, 300.0, 1e-30, 1e15, 1e30]))
    values = torch.randn(shape) * magnitude + draw(st.sampled_from([0.0, 0.0, 100.0 * magnitude]))
    if draw(st.booleans()):
        values = values.relu()
    values = lay_out(values.to(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(LAYOUTS)))
    for poison in draw(st.lists(st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 0.0, 0.5, -2.0]), max_size=3)):
        if values.numel():
            place = torch.tensor(draw(st.integers(0, values.numel() - 1)))
            values[torch.unravel_index(place, values.shape) if values.dim() else ()] = poison
    return values


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@given(x=tensors(), near_zero=st.sampled_from([0.0, 1e-3, 0.5]))
def test_any_tensor_is_measured_as_numpy_does(how, x, near_zero):
    check(x, near_zero, how)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(33,), (5, 7), (2, 3, 4, 5)])
def test_any_tensor_of_any_layout_is_read_where_its_values_are(shape, layout, how):
    check(lay_out(torch.randn(shape), layout), how=how)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "misaligned"])
def test_triton_copies_nothing_whose_memory_has_no_gaps(layout):
    pytest.importorskip("triton", minversion="3.3")
    from gradops.backends.triton import activations as triton_activations

    x = lay_out(torch.randn(2, 3, 4, 5), layout)
    assert triton_activations._in_memory_order(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-20, 1e-13, 1e15, 1e20, 3e38])
def test_huge_and_tiny_values_neither_overflow_nor_vanish(how, scale):
    check((torch.rand(3 * CHUNK) * 2 - 1) * scale, how=how)
    mixed = torch.randn(4 * CHUNK)
    mixed[:CHUNK] *= scale
    mixed[-1] = torch.finfo(torch.float32).max
    check(mixed, how=how)


@pytest.mark.skipif(INTERPRETED, reason="Triton's kernel has float64")
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_stay_in_range_on_devices_without_float64(scale, monkeypatch):
    monkeypatch.setattr(torch_math, "_WITHOUT_FLOAT64", {"cpu"})
    check((torch.rand(3 * CHUNK) * 2 - 1) * scale, how="python")


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_a_mean_far_from_zero_costs_no_precision(how):
    check(torch.randn(5 * CHUNK + 3) * 0.01 + 1000.0, how=how)
    check(BETWEEN_FLOATS, how=how)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_every_edge_and_its_neighbours_are_in_their_bins(how):
    edges = torch.tensor(EDGES, dtype=torch.float32)
    inf = torch.tensor(math.inf)
    check(torch.cat([edges, edges.nextafter(inf), edges.nextafter(-inf), -edges, torch.tensor([-0.0])]), how=how)


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_layer_of_nothing_finite_is_counted_and_not_called_dead(how, value):
    x = torch.full((CHUNK + 5,), value)
    measures, counts = measured(x, how=how)
    assert measures.isnan().all()
    assert counts[:4].tolist() == [x.numel(), 0, 0, x.numel()]
    assert counts[4:].sum() == 0


@pytest.mark.parametrize("how", IMPLEMENTATIONS)
def test_the_histogram_drops_no_finite_value(how):
    x = torch.cat([torch.randn(CHUNK) * 1e6, -torch.rand(77) * 1e38, torch.zeros(5), torch.tensor([1e-40, -1e-40])])
    _, counts = measured(x, how=how)
    assert counts[4:].sum() == x.numel()
    assert counts[4] > 77
    assert counts[-1] > 0


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads_and_instruction_set(dtype):
    from gradops import _C

    x = (torch.randn(40 * CHUNK + 17) + 3).to(dtype)
    threads, capability = torch.get_num_threads(), _C.cpu_capability()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for name in ("baseline", "avx2", "avx512"):
                try:
                    _C.set_cpu_capability(name)
                except ValueError:
                    continue
                results.append(measured(x))
    finally:
        torch.set_num_threads(threads)
        _C.set_cpu_capability(capability)
    assert len(results) >= 3
    for measures, counts in results:
        assert torch.equal(measures, results[0][0])
        assert torch.equal(counts, results[0][1])


def test_input_is_left_alone():
    x = torch.randn(10, requires_grad=True)
    before = x.detach().clone(), x._version
    check(x)
    assert torch.equal(x.detach(), before[0])
    assert x._version == before[1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (), (CHUNK + 1,)])
def test_operator_passes_opcheck(dtype, shape):
    opcheck(torch.ops.gradops.activation_stats, (torch.randn(shape).to(dtype), 1e-3))


def test_operator_compiles():
    def both(x):
        return torch.ops.gradops.activation_stats(x * 2, 0.5)

    x = torch.randn(100)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")(x)
    for mine, other in zip(both(x), compiled, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.skipif(INTERPRETED, reason="the operator checks, whatever it then runs")
@pytest.mark.parametrize("how", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("x", "near_zero", "message"),
    [
        (torch.ones(3), -1.0, "near_zero must not be negative"),
        (torch.ones(3), math.nan, "near_zero must not be negative"),
        (torch.ones(3, dtype=torch.float64), 0.1, "Double|float64"),
        (torch.ones(3).to_sparse(), 0.1, "sparse|Sparse"),
    ],
)
def test_bad_arguments_are_refused(how, x, near_zero, message):
    with pytest.raises((ValueError, RuntimeError, NotImplementedError), match=message):
        measured(x, near_zero, how)
