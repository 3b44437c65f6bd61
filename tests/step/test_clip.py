"""`clip_grad_norm_`: torch's, but right for huge and tiny gradients, and harmless when something is non-finite."""

import inspect
import math
import warnings

import pytest
import tolerances as tol
import torch
from beside import assert_close, assert_scalar
from cases import CHUNK, DTYPES, NORM_TYPES, ParamCase, draw_grad, param_cases
from hypothesis import given
from hypothesis import strategies as st

import gradops
from gradops import reference

HALF_ULP = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


def with_grads(cases, device, event="grad"):
    params = [case.param(device) for case in cases]
    for case, param in zip(cases, params, strict=True):
        param.grad = draw_grad(case, event, 1.0, device)
    return params


@given(
    cases=st.lists(param_cases(), min_size=1, max_size=6),
    max_norm=st.sampled_from([0.0, 1e-3, 1.0, 1e6, math.inf]),
    norm_type=st.sampled_from(NORM_TYPES),
    seed=st.integers(0, 2**32),
)
def test_any_gradients_are_clipped_as_the_oracle_clips_them(device, cases, max_norm, norm_type, seed):
    torch.manual_seed(seed)
    params = with_grads(cases, device)
    kept = [param.grad.clone() for param in params]
    grads, versions = [param.grad for param in params], [param.grad._version for param in params]
    stats = reference.grad_stats(kept, norm_type=norm_type)
    coef = reference.decide(stats, max_norm=max_norm).clip_coef
    norm = gradops.clip_grad_norm_(params, max_norm, norm_type)
    assert_scalar(norm, stats.grad_norm, tol.POWER_NORM, "norm")
    for param, grad, before, version in zip(params, grads, kept, versions, strict=True):
        assert param.grad is grad
        assert grad._version > version or coef == 1.0
        ulp = tol.Tolerance(
            HALF_ULP[grad.dtype] * 1.01 + tol.POWER_CLIP_COEF.rtol, 2.0**-24, "one rounding when stored"
        )
        assert_close(grad, before.double() * coef, ulp, float(grad.dtype == torch.float16), "grad")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("max_norm", [1e-2, 1.0, 1e5])
def test_where_torch_is_right_the_result_is_torchs(max_norm, norm_type, dtype, device):
    case = ParamCase((20,), dtype, grad_dtype=dtype)
    ours = with_grads([case] * 3, device)
    theirs = [param.detach().clone().requires_grad_() for param in ours]
    for mine, torchs in zip(ours, theirs, strict=True):
        torchs.grad = mine.grad.clone()
    norm = gradops.clip_grad_norm_(ours, max_norm, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 1e-3}
    torch.testing.assert_close(norm, expected.float(), **tolerance)
    for mine, torchs in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, torchs.grad, **tolerance)


def test_signature_is_torchs():
    ours = inspect.signature(gradops.clip_grad_norm_).parameters
    theirs = inspect.signature(torch.nn.utils.clip_grad_norm_).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e-25, 1e-20, 1.0, 1e10, 1e20, 1e30, 1e37])
def test_huge_and_tiny_gradients_are_clipped_to_max_norm(magnitude, device):
    param = torch.zeros(CHUNK + 1, device=device).requires_grad_()
    param.grad = torch.randn_like(param) / 100 * magnitude
    expected = param.grad.double().norm().item()
    assert gradops.clip_grad_norm_(param, magnitude / 10).item() == pytest.approx(expected, rel=1e-5)
    coef = min(1.0, magnitude / 10 / (expected + 1e-6))
    assert param.grad.double().norm().item() == pytest.approx(expected * coef, rel=1e-5)


@pytest.mark.parametrize("poison", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("max_norm", [0.0, 1.0, math.inf])
def test_non_finite_gradients_stay_as_they_were(max_norm, poison, device):
    params = [torch.zeros(5, device=device).requires_grad_() for _ in range(2)]
    for param in params:
        param.grad = torch.arange(5.0, device=device)
    params[1].grad[2] = poison
    norm = gradops.clip_grad_norm_(params, max_norm)
    assert norm.isnan() if math.isnan(poison) else norm == math.inf
    assert params[0].grad.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert params[1].grad.nan_to_num(9.0, 9.0, -9.0)[[0, 1, 3, 4]].tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_error_if_nonfinite_raises_torchs_error_and_changes_nothing(poison, device):
    messages = []
    for clip in (torch.nn.utils.clip_grad_norm_, gradops.clip_grad_norm_):
        param = torch.zeros(3, device=device).requires_grad_()
        param.grad = torch.tensor([1.0, poison, 2.0], device=device)
        with pytest.raises(RuntimeError, match="non-finite") as caught:
            clip([param], 1.0, error_if_nonfinite=True)
        messages.append(str(caught.value).split(",")[0])
    assert param.grad[[0, 2]].tolist() == [1.0, 2.0]
    assert messages[0] == messages[1]


def test_zero_max_norm_makes_finite_gradients_zero(device):
    param = torch.zeros(3, device=device).requires_grad_()
    param.grad = torch.tensor([3.0, 0.0, 4.0], device=device)
    assert gradops.clip_grad_norm_([param], 0.0).item() == 5.0
    assert param.grad.tolist() == [0.0, 0.0, 0.0]


def test_infinite_max_norm_measures_and_does_not_write(device):
    """The HF Trainer calls it so on every step."""
    param = torch.zeros(3, device=device).requires_grad_()
    param.grad = torch.tensor([3.0, 0.0, 4.0], device=device)
    version = param.grad._version
    assert gradops.clip_grad_norm_([param], math.inf).item() == 5.0
    assert param.grad._version == version


def test_accepts_what_torch_accepts(device):
    def fresh():
        param = torch.zeros(2, device=device).requires_grad_()
        param.grad = torch.tensor([3.0, 4.0], device=device)
        return param

    param = fresh()
    for parameters in (
        fresh(),
        [fresh()],
        (p for p in [fresh()]),
        {fresh(): 1}.keys(),
        [fresh(), torch.zeros(3).requires_grad_()],
    ):
        assert gradops.clip_grad_norm_(parameters, 1.0).item() == 5.0
    assert gradops.clip_grad_norm_(param, max_norm=torch.tensor(1.0), norm_type=2, foreach=True).item() == 5.0
    assert param.grad.tolist() == pytest.approx([0.6, 0.8])


def test_model_parameters_generator_is_consumed_once(device):
    model = torch.nn.Linear(3, 2).to(device)
    model(torch.ones(1, 3, device=device)).sum().backward()
    expected = torch.nn.utils.get_total_norm([param.grad for param in model.parameters()])
    torch.testing.assert_close(gradops.clip_grad_norm_(model.parameters(), 1e9), expected)


def test_no_parameters_or_no_gradients_give_zero(device):
    assert gradops.clip_grad_norm_([], 1.0).item() == 0.0
    assert gradops.clip_grad_norm_([torch.zeros(3, device=device).requires_grad_()], 1.0).item() == 0.0


def test_tied_parameter_is_clipped_once(device):
    param = torch.zeros(2, device=device).requires_grad_()
    param.grad = torch.tensor([3.0, 4.0], device=device)
    norms = []
    for clip in (torch.nn.utils.clip_grad_norm_, gradops.clip_grad_norm_):
        param.grad = torch.tensor([3.0, 4.0], device=device)
        norms.append(clip([param], 1.0).item())
        assert param.grad.tolist() == pytest.approx([0.6, 0.8], rel=1e-5)
    assert norms[0] == norms[1]


def test_result_is_a_float32_scalar_on_the_gradients_device(device):
    param = torch.zeros(2, dtype=torch.bfloat16, device=device).requires_grad_()
    param.grad = torch.ones_like(param)
    norm = gradops.clip_grad_norm_([param], 1.0)
    assert (norm.dtype, norm.dim(), norm.device.type) == (torch.float32, 0, device.type)
    assert not norm.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": -1.0}, "max_norm.*-1"),
        ({"max_norm": math.nan}, "max_norm.*nan"),
        ({"max_norm": 1.0, "norm_type": 0.0}, "norm_type.*0"),
        ({"max_norm": 1.0, "norm_type": -1.0}, "norm_type.*-1"),
        ({"max_norm": 1.0, "norm_type": math.nan}, "norm_type.*nan"),
    ],
)
def test_bad_arguments_are_refused_and_gradients_stay(options, message, device):
    param = torch.zeros(2, device=device).requires_grad_()
    param.grad = torch.tensor([3.0, 4.0], device=device)
    with pytest.raises(ValueError, match=message):
        gradops.clip_grad_norm_([param], **options)
    assert param.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("options", [{"max_norm": None}, {"max_norm": "1"}, {"max_norm": 1.0, "norm_type": None}])
def test_arguments_that_are_no_numbers_are_named(options, device):
    param = torch.zeros(2, device=device).requires_grad_()
    param.grad = torch.tensor([3.0, 4.0], device=device)
    with pytest.raises(TypeError, match=f"{list(options)[-1]} must be a number"):
        gradops.clip_grad_norm_([param], **options)
    assert param.grad.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("dense_beside", [False, True])
def test_sparse_gradients_are_clipped_as_torch_clips_them(norm_type, dense_beside, device):
    grads, norms = [], []
    for clip in (gradops.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        embedding = torch.nn.Embedding(4, 3, sparse=True, device=device)
        embedding(torch.tensor([1, 1, 2], device=device)).sum().backward()
        params = [embedding.weight]
        if clip is not gradops.clip_grad_norm_:  # from torch 2.7 on it takes sparse ones
            params[0].grad = params[0].grad.to_dense()
        if dense_beside:
            params.append(torch.zeros(2, device=device).requires_grad_())
            params[1].grad = torch.tensor([3.0, 4.0], device=device)
        norms.append(clip(params, 1.0, norm_type))
        grads.append([param.grad.to_dense() for param in params])
    torch.testing.assert_close(norms[0], norms[1])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("element", [3 + 4j, 4j, 3])
def test_complex_gradients_are_clipped_as_torch_clips_them(element, norm_type, dtype, device):
    grads, norms = [], []
    for clip in (gradops.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        param = torch.zeros(4, dtype=dtype, device=device).requires_grad_()
        real = torch.zeros(2, device=device).requires_grad_()
        param.grad = torch.full((4,), element, dtype=dtype, device=device)
        real.grad = torch.tensor([1.0, -2.0], device=device)
        norms.append(clip([param, real], 1.0, norm_type))
        grads.append([param.grad, real.grad])
    torch.testing.assert_close(norms[0].double(), norms[1].double(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("element", "norm"),
    [
        (3 + 4j, 10.0),
        (4j, 8.0),
        (3e20 + 4e20j, 1e21),
        (3e37 + 4e37j, 1e38),
        (3e-25 + 4e-25j, 1e-24),
        (3e-37 - 4e-37j, 1e-36),
        (complex(0.0, math.inf), math.inf),
        (complex(math.nan, 1.0), math.nan),
    ],
)
@pytest.mark.parametrize("conjugated", [False, True])
def test_norm_of_complex_gradients(element, norm, conjugated, device):
    param = torch.zeros(4, dtype=torch.complex64, device=device).requires_grad_()
    grad = torch.full((4,), element, dtype=torch.complex64, device=device)
    param.grad = grad.conj() if conjugated else grad
    before, version = torch.view_as_real(grad).tolist(), param.grad._version
    assert gradops.clip_grad_norm_([param], 1.0).item() == pytest.approx(norm, rel=1e-6, nan_ok=True)
    assert param.grad._version > version
    if not 1 < norm < math.inf:
        assert repr(torch.view_as_real(grad).tolist()) == repr(before)
    else:
        torch.testing.assert_close(grad, torch.full_like(grad, element / norm), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("values", [[3 + 4j, 1j, -3j], [complex(0.0, math.inf), 1j, 2.0], [complex(1.0, math.nan)] * 3])
def test_sparse_complex_gradients_are_clipped_or_left(values, device):
    param = torch.zeros(5, dtype=torch.complex64, device=device).requires_grad_()
    values = torch.tensor(values, dtype=torch.complex64, device=device)
    param.grad = torch.sparse_coo_tensor([[0, 2, 2]], values.clone(), (5,), device=device, check_invariants=True)
    norm, version = torch.stack([values[0], values[1] + values[2]]).abs().norm(), param.grad._version
    torch.testing.assert_close(gradops.clip_grad_norm_([param], 1.0), norm, equal_nan=True)
    assert param.grad._version > version
    kept = torch.view_as_real(param.grad._values())
    expected = torch.view_as_real(values) / (norm if norm.isfinite() else 1.0)
    torch.testing.assert_close(kept, expected, equal_nan=True)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex_half_may_have_sizes_beyond_float16(device):
    param = torch.zeros(2, dtype=torch.complex32, device=device).requires_grad_()
    param.grad = torch.full((2,), 60000 + 60000j, dtype=torch.complex32, device=device)
    element = param.grad[0].to(torch.complex64).abs().item()
    assert gradops.clip_grad_norm_([param], 1.0).item() == pytest.approx(element * math.sqrt(2), rel=1e-6)
    torch.testing.assert_close(torch.view_as_real(param.grad), torch.full((2, 2), 0.5, device=device).half())


def test_lazily_negated_gradients_are_clipped(device):
    param = torch.zeros(4, device=device).requires_grad_()
    param.grad = torch.full((4,), 3 + 4j, device=device).conj().imag
    assert param.grad.is_neg()
    assert gradops.clip_grad_norm_([param], 1.0).item() == 8.0
    assert param.grad.tolist() == pytest.approx([-0.5] * 4)


def test_empty_generator_warns_as_torchs_does():
    said = []
    for clip in (torch.nn.utils.clip_grad_norm_, gradops.clip_grad_norm_):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert clip((param for param in []), 1.0) == 0.0
        said.append([str(warning.message) for warning in caught])
    assert said[1] == ["`parameters` is an empty generator, no gradient clipping will occur."]
    assert said[0] in (said[1], [])  # torch 2.6 says nothing


@pytest.mark.parametrize("norm_type", [2, "inf", 1])
def test_error_names_the_norm_as_torchs_does(norm_type, device):
    messages = []
    for clip in (torch.nn.utils.clip_grad_norm_, gradops.clip_grad_norm_):
        param = torch.zeros(3, device=device).requires_grad_()
        param.grad = torch.full((3,), math.inf, device=device)
        with pytest.raises(RuntimeError) as caught:
            clip([param], 1.0, norm_type, error_if_nonfinite=True)
        messages.append(str(caught.value).split(",")[0])
    assert messages[0] == messages[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_without_elements_have_norm_0(dtype, device):
    param = torch.zeros(0, dtype=dtype, device=device).requires_grad_()
    param.grad = torch.zeros_like(param)
    norm = gradops.clip_grad_norm_([param], 1.0)
    assert norm.dtype == dtype
    assert norm == 0.0
