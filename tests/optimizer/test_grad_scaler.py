"""GradScaler loops with our optimizer, by torch's scaler and by ours."""

import copy
import math
import pickle

import pytest
import torch
from beside import assert_bitwise, snapshot
from hypothesis import given
from hypothesis import strategies as st
from refused import refused_at_step
from scaler_loops import OPTIONS, SCALERS, loop

import gradops


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("scaler_cls", SCALERS)
@given(values=st.lists(st.sampled_from([1.0, -2.0, 0.5, math.inf, math.nan]), min_size=1, max_size=10))
def test_any_loop_equals_torchs(scaler_cls, unscale, device, values):
    expected, scales, _ = loop(torch.amp.GradScaler, torch.optim.AdamW, values, device, unscale)
    param, ours, optimizer = loop(scaler_cls, gradops.AdamW, values, device, unscale)
    torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6)
    assert ours == scales
    finite = sum(math.isfinite(value) for value in values)
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (finite, len(values) - finite)


@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_the_contracts_scale_sequence(scaler_cls, device):
    _, scales, _ = loop(scaler_cls, gradops.AdamW, [math.inf, 1.0, 1.0, 1.0, 1.0], device)
    assert scales == [512.0, 512.0, 1024.0, 1024.0, 2048.0]


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_clipping_works_on_unscaled_gradients(scaler_cls, unscale, device):
    values = [1.0, 3.0, -2.0]
    expected, _, _ = loop(torch.amp.GradScaler, torch.optim.Adam, values, device, unscale=True, clip=1.0)
    param, _, optimizer = loop(scaler_cls, gradops.Adam, values, device, unscale=unscale, max_norm=1.0)
    torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6)
    assert optimizer.stats.grad_norm.item() == pytest.approx(4.0)


@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_user_clipping_between_unscale_and_step_is_kept(scaler_cls, device):
    values = [1.0, 3.0, -2.0]
    expected, _, _ = loop(torch.amp.GradScaler, torch.optim.Adam, values, device, unscale=True, clip=0.5)
    param, _, optimizer = loop(scaler_cls, gradops.Adam, values, device, unscale=True, clip=0.5)
    torch.testing.assert_close(param, expected, rtol=1e-5, atol=1e-6)
    assert optimizer.stats.grad_norm.item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("scaler_cls", SCALERS)
@pytest.mark.parametrize("poison", [math.inf, math.nan])
def test_skip_is_bitwise(poison, scaler_cls, unscale, device):
    param = torch.ones(4, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param], lr=0.1), scaler_cls(device.type, **OPTIONS)
    before = None
    for value in (1.0, poison):
        before = snapshot(optimizer)
        optimizer.zero_grad()
        scaler.scale((param * value).sum()).backward()
        scaler.unscale_(optimizer) if unscale else None
        scaler.step(optimizer)
        scaler.update()
    assert_bitwise(snapshot(optimizer), before)
    assert bool(optimizer.stats.found_inf)
    assert optimizer.stats.clip_coef.item() == 1.0


@pytest.mark.parametrize("found", [1.0, 2.0, 8.0])
def test_found_inf_of_several_devices_skips(found, device):
    """GradScaler sums the flags of all devices."""
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    param.grad = torch.ones_like(param)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0, device=device), torch.tensor(found, device=device)
    optimizer.step()
    assert param.tolist() == [1.0] * 4
    assert (int(optimizer.stats.steps_skipped), optimizer.stats.found_inf.item()) == (1, 1.0)


def test_grad_scale_of_the_scaler_is_divided_out(device):
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    param.grad = torch.full_like(param, 8.0)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0, device=device), torch.tensor(0.0, device=device)
    optimizer.step()
    assert optimizer.stats.grad_norm.item() == 4.0
    assert optimizer.stats.loss_scale.item() == 4.0


@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_scaler_leaves_no_attributes_behind(scaler_cls, device):
    _, _, optimizer = loop(scaler_cls, gradops.AdamW, [1.0], device)
    assert "grad_scale" not in vars(optimizer)
    assert "found_inf" not in vars(optimizer)
    param = optimizer.param_groups[0]["params"][0]
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert optimizer.stats.grad_norm.item() == 2.0


def test_flag_for_the_scaler_survives_copies():
    optimizer = gradops.AdamW([torch.ones(2).requires_grad_()])
    for twin in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert twin._step_supports_amp_scaling is True
        assert "_step_supports_amp_scaling" not in vars(twin)


@pytest.mark.parametrize("scaler_cls", SCALERS)
@pytest.mark.parametrize("poisoned", [0, 1, None])
def test_one_scaler_for_two_optimizers(poisoned, scaler_cls, device):
    """Each is skipped for its own gradients; the scale backs off if either overflowed."""
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(2)]
    optimizers = [gradops.AdamW([params[0]], lr=0.1), torch.optim.SGD([params[1]], lr=0.1)]
    scaler = scaler_cls(device.type, **OPTIONS)
    scaler.scale(
        sum((param * (math.inf if row == poisoned else 1.0)).sum() for row, param in enumerate(params))
    ).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert [bool((param == 1.0).all()) for param in params] == [poisoned == 0, poisoned == 1]
    assert scaler.get_scale() == (1024.0 if poisoned is None else 512.0)


@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_disabled_scaler_steps_plainly(scaler_cls, device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param]), scaler_cls(device.type, enabled=False)
    scaler.scale(param.sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.stats.grad_norm.item() == pytest.approx(math.sqrt(3))
    assert optimizer.stats.loss_scale.item() == 1.0


@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_misuse_raises_as_with_torch(scaler_cls, device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param]), scaler_cls(device.type, **OPTIONS)
    scaler.scale(param.sum()).backward()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="unscale_"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="step"):
        scaler.step(optimizer)


@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_half_precision_autocast_training_converges(scaler_cls, device):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)).to(device)
    data, target = torch.randn(64, 8, device=device), torch.randn(64, 1, device=device)
    optimizer, scaler, losses = gradops.AdamW(model.parameters(), lr=0.02, max_norm=1.0), scaler_cls(device.type), []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.float16 if device.type == "cuda" else torch.bfloat16):
            loss = torch.nn.functional.mse_loss(model(data), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_losses_of_several_kinds_add_up(scaler_cls, device):
    """Two losses scaled apart, one of them in two micro-batches, are the gradient of their sum."""
    weights = torch.linspace(-1.0, 1.0, 6, device=device)
    param = torch.ones(6, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param], lr=0.1), scaler_cls(device.type, **OPTIONS)
    for part in ((param * weights).sum(), param.square().sum() / 2, param.square().sum() / 2):
        scaler.scale(part).backward()
    scaler.step(optimizer)
    scaler.update()
    expected = (weights + 2.0).norm().item()
    assert optimizer.stats.grad_norm.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [0, 2])
@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_scale_moves_at_real_steps_only_and_a_bad_micro_batch_skips_the_step(scaler_cls, bad, device):
    param = torch.ones(4, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param], lr=0.1), scaler_cls(device.type, init_scale=1024.0, growth_interval=1)
    scales = []
    for step in range(3):
        optimizer.zero_grad()
        for micro in range(3):
            value = math.inf if (step, micro) == (1, bad) else 0.25
            scaler.scale((param * value).sum()).backward()
            scales.append(scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    assert scales == [1024.0] * 3 + [2048.0] * 3 + [1024.0] * 3
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (2, 1)
    assert optimizer.stats.grad_norm.item() == pytest.approx(1.5)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("scaler_cls", SCALERS)
def test_idle_half_of_a_gan_is_left_alone(scaler_cls, unscale, device):
    """An optimizer that got no gradients this time: torch's scaler hands over the int 0 as found_inf."""
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(2)]
    busy, idle = (gradops.AdamW([param], lr=0.1) for param in params)
    scaler = scaler_cls(device.type, **OPTIONS)
    for _ in range(2):
        busy.zero_grad()
        scaler.scale(params[0].sum()).backward()
        for optimizer in (busy, idle):
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
        scaler.update()
    assert params[1].tolist() == [1.0] * 3
    assert not idle.state
    assert [int(one.stats.steps_taken) for one in (busy, idle)] == [2, 0]


@pytest.mark.parametrize("found_inf", [0, 1.0, True])
def test_numbers_in_place_of_tensors_are_taken(found_inf, device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], lr=0.1)
    param.grad = torch.full_like(param, 8.0)
    optimizer.grad_scale, optimizer.found_inf = 4, found_inf
    optimizer.step()
    assert int(optimizer.stats.steps_skipped) == bool(found_inf)
    assert optimizer.stats.norms.item() == pytest.approx(2.0 * math.sqrt(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("found", [False, True])
def test_tensors_of_one_element_are_taken_in_any_shape_dtype_and_place(found, shape, dtype, device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], lr=0.1)
    param.grad = torch.full_like(param, 8.0)
    optimizer.grad_scale = torch.full(shape, 4, dtype=dtype)  # on the CPU, whatever the device is
    optimizer.found_inf = torch.full(shape, int(found), dtype=dtype)
    optimizer.step()
    assert int(optimizer.stats.steps_skipped) == found
    assert optimizer.stats.grad_norm.item() == pytest.approx(2.0 * math.sqrt(3))


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("4", TypeError),
        (torch.ones(2), ValueError),
        (torch.ones(0), ValueError),
        (torch.ones((), device="meta"), ValueError),
    ],
)
def test_what_is_no_scalar_is_refused_by_its_name(name, value, error, device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer = gradops.AdamW([param], lr=0.1)
    param.grad = torch.ones_like(param)
    optimizer.grad_scale = optimizer.found_inf = None
    setattr(optimizer, name, value)
    refused_at_step(optimizer, f"{name} must be a number", error)
