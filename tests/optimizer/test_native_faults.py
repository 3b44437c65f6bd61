"""Where native PyTorch goes wrong. Each fault is asserted of torch too, so that we notice when torch mends it."""

import math

import pytest
import torch

import gradops

pytestmark = pytest.mark.usefixtures("backend")


def grads(*rows, dtype=torch.float32):
    params = [torch.zeros(len(row), dtype=dtype).requires_grad_() for row in rows]
    for param, row in zip(params, rows, strict=True):
        param.grad = torch.tensor(row, dtype=dtype)
    return params


def values(params):
    return [param.grad.tolist() for param in params]


def clip_torch(params, max_norm=1.0, **options):
    return torch.nn.utils.clip_grad_norm_(params, max_norm, **options)


def test_one_inf_makes_torch_zero_every_other_gradient():
    torchs, ours = (grads([1.0, math.inf], [2.0, 3.0]) for _ in range(2))
    clip_torch(torchs)
    assert math.isnan(torchs[0].grad[1])
    assert torchs[1].grad.tolist() == [0.0, 0.0]
    assert gradops.clip_grad_norm_(ours, 1.0).item() == math.inf
    assert values(ours) == [[1.0, math.inf], [2.0, 3.0]]


def test_one_nan_makes_torch_turn_every_gradient_into_nan():
    torchs, ours = (grads([1.0, math.nan], [2.0, 3.0]) for _ in range(2))
    clip_torch(torchs)
    assert all(param.grad.isnan().all() for param in torchs)
    assert gradops.clip_grad_norm_(ours, 1.0).isnan()
    assert ours[1].grad.tolist() == [2.0, 3.0]
    assert ours[0].grad[0].item() == 1.0


def test_finite_gradients_of_1e20_overflow_torchs_norm():
    torchs, ours = (grads([3e20, 4e20]) for _ in range(2))
    assert clip_torch(torchs).item() == math.inf
    assert torchs[0].grad.tolist() == [0.0, 0.0]
    assert gradops.clip_grad_norm_(ours, 1.0).item() == pytest.approx(5e20)
    assert ours[0].grad.tolist() == pytest.approx([0.6, 0.8])


def test_finite_gradients_of_1e20_freeze_a_clipped_torch_optimizer():
    torchs, ours = (grads([3e20, 4e20])[0] for _ in range(2))
    native, fused = torch.optim.Adam([torchs], lr=0.1), gradops.Adam([ours], lr=0.1, max_norm=1.0)
    clip_torch([torchs])
    native.step()
    fused.step()
    assert torchs.tolist() == [0.0, 0.0]
    assert ours.tolist() == pytest.approx([-0.1, -0.1])


def test_float16_norm_beyond_float16_overflows_in_torch():
    torchs, ours = (grads([38400.0] * 4, dtype=torch.float16) for _ in range(2))
    assert clip_torch(torchs).item() == math.inf
    assert torchs[0].grad.tolist() == [0.0] * 4
    assert gradops.clip_grad_norm_(ours, 1.0).item() == 76800.0
    assert ours[0].grad.tolist() == [0.5] * 4


def test_negative_max_norm_reverses_torchs_gradients():
    torchs, ours = (grads([3.0, 4.0]) for _ in range(2))
    clip_torch(torchs, -1.0)
    assert torchs[0].grad[0] < 0
    with pytest.raises(ValueError, match="max_norm"):
        gradops.clip_grad_norm_(ours, -1.0)
    assert values(ours) == [[3.0, 4.0]]


def test_fused_cpu_adamw_is_wrong_when_strides_differ():
    weights, grad = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)

    def stepped(cls, **options):
        param = weights.clone(memory_format=torch.channels_last).requires_grad_()
        param.grad = grad.clone()
        cls([param], lr=0.1, **options).step()
        return param.detach()

    right = stepped(torch.optim.AdamW, foreach=False)
    assert (stepped(torch.optim.AdamW, fused=True) - right).abs().max() > 0.1
    torch.testing.assert_close(stepped(gradops.AdamW), right)


def test_found_inf_of_two_steps_torchs_fused_kernel_onto_nan():
    """GradScaler sums found_inf over devices; the kernel skips only if it equals 1."""
    state = [torch.zeros(2) for _ in range(3)]
    options = {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.0,
        "eps": 1e-8,
        "amsgrad": False,
        "maximize": False,
    }
    scale, found_inf = torch.tensor(1.0), torch.tensor(2.0)
    lists = [[state[0]], [torch.full((2,), math.nan)], [state[1]], [state[2]], [], [torch.tensor(1.0)]]
    torch._fused_adam_(*lists, **options, grad_scale=scale, found_inf=found_inf)
    assert state[0].isnan().all()

    param = grads([1.0, 1.0])[0]
    optimizer = gradops.Adam([param], lr=0.1)
    optimizer.grad_scale, optimizer.found_inf = scale, found_inf
    optimizer.step()
    assert param.tolist() == [0.0, 0.0]
    assert int(optimizer.stats.steps_skipped) == 1


def test_two_hundred_overflows_bring_grad_scalers_scale_to_zero():
    def overflow(scaler, optimizer, param):
        scaler.scale(torch.zeros(()))
        param.grad = torch.full((1,), math.inf)
        scaler.step(optimizer)
        scaler.update()

    def scale_after(scaler):
        param = torch.zeros(1).requires_grad_()
        optimizer = torch.optim.Adam([param])
        for _ in range(200):
            overflow(scaler, optimizer, param)
        return scaler.get_scale()

    assert scale_after(torch.amp.GradScaler("cpu")) == 0.0
    assert scale_after(gradops.GradScaler("cpu")) > 0.0
    param = torch.zeros(1).requires_grad_()
    optimizer = gradops.Adam([param], loss_scale="dynamic")
    for _ in range(200):
        optimizer.scale(torch.zeros(()))
        param.grad = torch.full((1,), math.inf)
        optimizer.step()
    assert optimizer.stats.loss_scale.item() > 0.0


def test_grad_scaler_makes_an_extra_pass_even_for_fused_optimizers():
    """The pass reads every gradient and writes it back, multiplied by 1."""

    def amp_kernels(scaler, optimizer, param):
        scaler.scale(param.sum()).backward()
        with torch.profiler.profile() as profile:
            scaler.step(optimizer)
        return [event.key for event in profile.key_averages() if event.key.startswith("aten::_amp_foreach")]

    param = torch.ones(3).requires_grad_()
    fused = torch.optim.Adam([param], fused=True)
    assert amp_kernels(torch.amp.GradScaler("cpu"), fused, param) == [
        "aten::_amp_foreach_non_finite_check_and_unscale_"
    ]
    assert amp_kernels(gradops.GradScaler("cpu"), gradops.Adam([param]), param) == []


def test_load_state_dict_casts_torchs_float32_moments_to_bfloat16():
    moments = torch.full((2,), 1.0 + 2.0**-12)

    def loaded(cls):
        param = torch.ones(2, dtype=torch.bfloat16).requires_grad_()
        optimizer = cls([param])
        state = {0: {"step": torch.tensor(1.0), "exp_avg": moments.clone(), "exp_avg_sq": moments.clone()}}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return optimizer.state[param]["exp_avg"]

    assert loaded(torch.optim.AdamW).dtype == torch.bfloat16
    assert loaded(gradops.AdamW).dtype == torch.float32
    assert torch.equal(loaded(gradops.AdamW), moments)


def test_loading_a_plain_checkpoint_turns_torchs_fused_flag_off():
    param = torch.ones(2).requires_grad_()
    param.grad = torch.ones(2)
    plain = torch.optim.AdamW([param])
    plain.step()
    fused = torch.optim.AdamW([param], fused=True)
    fused.load_state_dict(plain.state_dict())
    assert fused.param_groups[0]["fused"] is None
    ours = gradops.AdamW([param], max_norm=1.0)
    ours.load_state_dict(plain.state_dict())
    ours.step()
    assert int(ours.stats.steps_taken) == 1
    assert ours.max_norm == 1.0
