"""The update itself: every dtype, layout, option and sequence of steps, against the oracle."""

import pytest
import torch
from beside import Beside, params_of
from cases import (
    CHUNK,
    DTYPES,
    LAYOUTS,
    ParamCase,
    draw_grad,
    group_options,
    needs_other_dtypes,
    param_cases,
    sequences,
    settings_of_the_step,
)
from hypothesis import given
from hypothesis import strategies as st

import gradops

CLASSES = [gradops.Adam, gradops.AdamW]


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(cls, device, data, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=6))
    settings = data.draw(settings_of_the_step())
    cut = data.draw(st.integers(1, len(cases)))
    params = [case.param(device) for case in cases]
    groups = [{"params": part, **data.draw(group_options())} for part in (params[:cut], params[cut:]) if part]
    both = Beside(cls(groups, **settings), **settings)
    for events in data.draw(sequences(len(cases))):
        scale = both.oracle.scale
        both.step([draw_grad(case, event, scale, device) for case, event in zip(cases, events, strict=True)])


OPTIONS = {
    "default": {},
    "tensor lr": {"lr": torch.tensor(0.02)},
    "zero lr": {"lr": 0.0},
    "betas": {"betas": (0.5, 0.9)},
    "no momentum": {"betas": (0.0, 0.99)},
    "eps": {"eps": 1e-2},
    "weight decay": {"weight_decay": 0.2},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "everything": {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.1, "amsgrad": True, "maximize": True},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cls", CLASSES)
def test_each_option_equals_the_oracle(cls, options, dtype, device):
    cases = [ParamCase((40, 30), dtype, grad_dtype=dtype), ParamCase((7,), dtype, grad_dtype=dtype)]
    both = Beside(cls([case.param(device) for case in cases], max_norm=1.0, **options), max_norm=1.0)
    for _ in range(4):
        both.step([case.grad(device=device) for case in cases])


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (5, 7), (2, CHUNK + 1)])
def test_strides_of_param_and_grad_may_differ(shape, layout, grad_layout, device):
    case = ParamCase(shape, layout=layout, grad_layout=grad_layout)
    both = Beside(gradops.AdamW([case.param(device)], lr=0.1, amsgrad=True, max_norm=1.0), max_norm=1.0)
    for _ in range(3):
        both.step([case.grad(device=device)])


def test_expanded_gradient_is_read_by_its_strides(device):
    param = torch.randn(6, 5, device=device).requires_grad_()
    both = Beside(gradops.Adam([param], max_norm=1.0), max_norm=1.0)
    both.step([torch.randn(5, device=device).expand(6, 5)])


@needs_other_dtypes
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_of_another_dtype_is_used_as_it_is(dtype, grad_dtype, device):
    case = ParamCase((100,), dtype, grad_dtype=grad_dtype)
    both = Beside(gradops.AdamW([case.param(device)], max_norm=1.0), max_norm=1.0)
    for _ in range(3):
        both.step([case.grad(device=device)])


def test_dtypes_side_by_side_in_one_group(device):
    cases = [ParamCase((64,), dtype, grad_dtype=dtype) for dtype in DTYPES * 3]
    both = Beside(gradops.AdamW([case.param(device) for case in cases], max_norm=0.5), max_norm=0.5)
    for _ in range(3):
        both.step([case.grad(device=device) for case in cases])


def test_half_precision_result_is_rounded_to_nearest_even(device):
    """lr 2^-9 moves 1.0 by a quarter of a bfloat16 ulp below it, 3 * 2^-9 by three quarters: down none, then one."""
    for lr, expected in [(2.0**-10, 1.0), (3 * 2.0**-10, 1.0 - 2.0**-8)]:
        param = torch.ones(33, dtype=torch.bfloat16, device=device).requires_grad_()
        optimizer = gradops.Adam([param], lr=lr, eps=0.0)
        param.grad = torch.ones_like(param)
        optimizer.step()
        assert param.detach().unique().tolist() == [expected]


def test_each_group_uses_its_own_hyperparameters(device):
    options = [
        {"lr": 0.1},
        {"betas": (0.5, 0.6)},
        {"eps": 0.1},
        {"weight_decay": 0.5},
        {"amsgrad": True},
        {"maximize": True},
    ]
    case = ParamCase((50,))
    both = Beside(gradops.AdamW([{"params": [case.param(device)], **option} for option in options]))
    for _ in range(3):
        both.step([case.grad(device=device) for _ in options])


def test_more_tensors_than_one_launch_holds(device):
    cases = [ParamCase((n % 5 + 1,)) for n in range(4500)]
    both = Beside(gradops.AdamW([case.param(device) for case in cases], max_norm=1.0), max_norm=1.0)
    both.step([case.grad(device=device) for case in cases])


def test_twenty_steps_without_resynchronising_stay_close(device):
    params = [torch.randn(40, 40, device=device).requires_grad_(), torch.randn(40, device=device).requires_grad_()]
    optimizer = gradops.AdamW(params, lr=1e-2, max_norm=0.1)
    both = Beside(optimizer, max_norm=0.1)
    both.synchronise = lambda: None
    both.compare = lambda stats: None
    for _ in range(20):
        both.step([torch.randn_like(param) for param in params])
    for row, param in enumerate(params):
        torch.testing.assert_close(param.detach(), both.oracle.params[row], rtol=1e-5, atol=1e-6)
        for key in ("exp_avg", "exp_avg_sq"):
            expected = both.oracle.states[row][key]
            torch.testing.assert_close(optimizer.state[param][key], expected, rtol=1e-4, atol=1e-9)


def test_frozen_parameter_with_a_left_over_gradient_takes_part(device):
    frozen, idle = (torch.randn(9, device=device) for _ in range(2))
    both = Beside(gradops.AdamW([frozen, idle], lr=0.1))
    before = frozen.clone()
    both.step([torch.randn_like(frozen), None])
    assert not torch.equal(frozen, before)
    assert idle not in both.optimizer.state or not both.optimizer.state[idle] or both.optimizer.state[idle]["step"] == 0


def test_first_step_of_a_late_parameter_has_its_own_bias_correction(device):
    early, late = (torch.randn(9, device=device).requires_grad_() for _ in range(2))
    both = Beside(gradops.Adam([early, late], lr=0.1))
    for _ in range(3):
        both.step([torch.randn_like(early), None])
    both.step([torch.randn_like(early), torch.randn_like(late)])
    assert [int(both.optimizer.state[param]["step"]) for param in (early, late)] == [4, 1]


def test_tensor_lr_filled_in_place_is_used(device):
    case, lr = ParamCase((20,)), torch.tensor(1e-3)
    both = Beside(gradops.AdamW([case.param(device)], lr=lr))
    both.step([case.grad(device=device)])
    lr.fill_(0.3)
    both.step([case.grad(device=device)])


def test_hyperparameters_are_read_at_each_step(device):
    case = ParamCase((20,))
    both = Beside(gradops.AdamW([case.param(device)]))
    changes = {"lr": 0.2, "betas": (0.5, 0.7), "eps": 0.1, "weight_decay": 0.4, "maximize": True}
    for key, value in changes.items():
        both.step([case.grad(device=device)])
        both.optimizer.param_groups[0][key] = value
    both.step([case.grad(device=device)])


def test_huge_finite_gradient_does_not_overflow_the_second_moment(device):
    param = torch.ones(4, device=device).requires_grad_()
    both = Beside(gradops.Adam([param], lr=0.1))
    both.step([torch.full_like(param, 1e20)])
    assert param.isfinite().all()
    assert (param < 1).all()


def test_closure_runs_with_gradients_enabled_and_its_value_is_returned(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.Adam([param], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert param.detach().tolist() == pytest.approx([0.9] * 3)


def test_steps_without_any_gradient_move_nothing(device):
    params = [torch.randn(5, device=device).requires_grad_() for _ in range(2)]
    both = Beside(gradops.AdamW(params, loss_scale=4.0), loss_scale=4.0)
    both.step([torch.randn_like(param) for param in params])
    before = both.optimizer.stats.clone()
    both.step([None, None])
    assert int(both.optimizer.stats.steps_taken) == 1
    assert torch.equal(before.grad_norm, both.optimizer.stats.grad_norm)


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_keeps_torchs_meaning(set_to_none, device):
    param = torch.randn(5, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    param.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=set_to_none)
    assert (param.grad is None) if set_to_none else (param.grad.tolist() == [0.0] * 5)
    optimizer.step()
    assert int(optimizer.state[param]["step"]) == (1 if set_to_none else 2)


def test_stale_second_backward_raises_as_with_torch(device):
    """The version counter of every written parameter is bumped."""
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)).to(device)
    optimizer = gradops.AdamW(layer.parameters())
    versions = [param._version for param in params_of(optimizer)]
    loss = layer(torch.randn(2, 3, device=device)).square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    assert all(param._version > before for param, before in zip(params_of(optimizer), versions, strict=True))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# 10,440 ends in a piece of 200 elements, whose last quad ends with the tensor. 41,037 is more than five chunks: their
# sums are merged by a whole block, in the scratch memory that it has just used.
TRAPS = [10_440, 41_037]


@pytest.mark.parametrize("size", TRAPS)
@pytest.mark.parametrize(
    ("amsgrad", "settings"),
    [
        (False, {}),
        (True, {}),
        (True, {"max_norm": 0.5}),
        (False, {"max_relative_step": 0.05}),
        (True, {"max_relative_step": 0.05}),
    ],
    ids=["plain", "amsgrad", "amsgrad, clipped", "capped", "amsgrad, capped"],
)
def test_trap_sizes_equal_the_oracle(size, amsgrad, settings, device):
    case = ParamCase((size,))
    both = Beside(gradops.AdamW([case.param(device)], lr=10.0, amsgrad=amsgrad, **settings), **settings)
    for _ in range(3):
        both.step([case.grad(device=device)])
