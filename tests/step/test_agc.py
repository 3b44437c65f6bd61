"""clip_mode="agc": each unit's gradient is clipped to a share of the norm of its weights (Brock et al. 2021)."""

import math

import pytest
import torch
from beside import Beside
from cases import (
    CHUNK,
    DTYPES,
    LAYOUTS,
    ParamCase,
    draw_grad,
    group_options,
    param_cases,
    sequences,
    settings_of_the_step,
)
from hypothesis import given
from hypothesis import strategies as st

import gradops

AGC = {"clip_mode": "agc", "max_norm": 0.01}
GUARD = gradops.SpikeGuard("clip", ratio=1.5, warmup_steps=1)


def spared():
    return st.just({"agc": False, "weight_decay": 0.1})


@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(device, data, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=4))
    settings = {**data.draw(settings_of_the_step()), **AGC, "guard": data.draw(st.sampled_from([None, GUARD]))}
    groups = [{"params": [case.param(device)], **data.draw(group_options() | spared())} for case in cases]
    both = Beside(gradops.AdamW(groups, **settings), **settings)
    for events in data.draw(sequences(len(cases))):
        scale = both.oracle.scale
        both.step([draw_grad(case, event, scale, device) for case, event in zip(cases, events, strict=True)])


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (1, 5), (3, 0), (2, 3, 4, 5), (3, CHUNK + 1), (1700, 5)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_units_of_every_shape_and_layout(shape, layout, device):
    case = ParamCase(shape, layout=layout, grad_layout=layout)
    both = Beside(gradops.AdamW([case.param(device)], **AGC), **AGC)
    both.step([case.grad(device=device)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_precision_gradients_are_measured_in_float32(dtype, device):
    case = ParamCase((4, 2000), dtype, grad_dtype=dtype, magnitude=300.0)
    both = Beside(gradops.AdamW([case.param(device)], **AGC), **AGC)
    both.step([case.grad(device=device)])


def test_a_large_step_on_several_threads_equals_the_oracle(device):
    cases = [ParamCase((70, 3, 7, 9), layout="channels_last"), ParamCase((300, 1000)), ParamCase((3, 5 * CHUNK))]
    both = Beside(gradops.AdamW([case.param(device) for case in cases], **AGC), **AGC)
    for _ in range(2):
        both.step([case.grad(device=device) for case in cases])


def first_moment(device, weights, grad, **settings):
    """What Adam makes of the gradient that it is given: itself, with beta1 = 0."""
    param = weights.to(device, copy=True).requires_grad_()
    param.grad = grad.to(device, copy=True)
    optimizer = gradops.Adam([param], betas=(0.0, 0.999), **settings)
    optimizer.step()
    return optimizer.state[param]["exp_avg"].cpu(), optimizer.stats


def test_each_unit_is_clipped_by_its_own_weights(device):
    weights = torch.tensor([[3.0, 4.0], [30.0, 40.0], [0.0, 0.0]])
    grad = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.6, 0.8]])
    used, stats = first_moment(device, weights, grad, clip_mode="agc", max_norm=0.1)
    # Norms of the weights 5, 50 and 0, which counts as 1e-3; of each gradient 1.
    torch.testing.assert_close(used, grad * torch.tensor([[0.5], [1.0], [1e-4]]))
    assert stats.clip_coef.item() == pytest.approx(1e-4)
    assert stats.grad_norm.item() == pytest.approx(3**0.5)


def test_vectors_and_scalars_are_one_unit(device):
    grad = torch.tensor([30.0, 40.0])
    used, _ = first_moment(device, torch.tensor([3.0, 4.0]), grad, clip_mode="agc", max_norm=0.1)
    torch.testing.assert_close(used, grad * 0.01)
    used, _ = first_moment(device, torch.tensor(-2.0), torch.tensor(10.0), clip_mode="agc", max_norm=0.1)
    assert used.item() == pytest.approx(0.2)


@pytest.mark.parametrize("magnitude", [1e20, 1e-25])
def test_huge_and_tiny_gradients_are_clipped_right(magnitude, device):
    grad = torch.tensor([[3.0, 4.0], [0.3, 0.4]]) * magnitude
    used, _ = first_moment(device, torch.ones(2, 2), grad, clip_mode="agc", max_norm=magnitude / 2**0.5)
    torch.testing.assert_close(used / magnitude, torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


@pytest.mark.parametrize("magnitude", [1e25, 1e-25])
def test_neighbouring_units_of_very_different_size_are_each_clipped_right(magnitude, device):
    grad = torch.ones(4, 6)
    grad[::2] = magnitude
    used, _ = first_moment(device, torch.ones(4, 6), grad, clip_mode="agc", max_norm=1e-3)
    clipped = torch.full((4, 6), 1e-3)
    clipped[::2] = min(magnitude, 1e-3)
    torch.testing.assert_close(used, clipped, atol=0.0, rtol=1e-5)


def test_a_group_may_be_spared(device):
    params = [torch.ones(2, 2, device=device).requires_grad_() for _ in range(2)]
    optimizer = gradops.Adam([{"params": params[:1]}, {"params": params[1:], "agc": False}], betas=(0.0, 0.999), **AGC)
    for param in params:
        param.grad = torch.ones(2, 2, device=device)
    optimizer.step()
    clipped, spared = (optimizer.state[param]["exp_avg"][0, 0].item() for param in params)
    assert (clipped, spared) == (pytest.approx(0.01), 1.0)


def test_an_inf_skips_the_step(device):
    used, stats = first_moment(device, torch.ones(2, 2), torch.tensor([[1.0, math.inf], [1.0, 1.0]]), **AGC)
    assert not used.any()
    assert (stats.found_inf.item(), stats.clip_coef.item()) == (1.0, 1.0)


def test_mode_may_change_in_mid_run(device):
    param = torch.ones(2, 2, device=device).requires_grad_()
    optimizer = gradops.Adam([param], max_norm=0.01, betas=(0.0, 0.999))
    used = []
    for mode in ("norm", "agc", "norm"):
        optimizer.clip_mode = mode
        param.grad = torch.tensor([[3.0, 4.0], [0.0, 1e-3]], device=device)
        optimizer.step()
        used.append(optimizer.state[param]["exp_avg"][1, 1].item())
    assert used == [pytest.approx(2e-6, rel=1e-4), pytest.approx(1e-3), pytest.approx(2e-6, rel=1e-4)]
    assert optimizer.state[param]["step"].item() == 3


def test_what_cannot_be_is_refused():
    param = torch.ones(2, 2).requires_grad_()
    with pytest.raises(ValueError, match="clip_mode must be one of norm, agc"):
        gradops.AdamW([param], clip_mode="filter")
    with pytest.raises(ValueError, match="needs max_norm"):
        gradops.AdamW([param], clip_mode="agc")
