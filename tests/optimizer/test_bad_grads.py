"""Bad gradients, and gradients of another scale than was said, are refused by name before anything moves."""

import pytest
import torch
from beside import assert_bitwise, snapshot
from refused import make, refused_at_step

import gradops

pytestmark = pytest.mark.usefixtures("backend")


def assign_grad_behind_torchs_back(param, grad):
    """torch checks `param.grad = ...` itself; `.data` on both sides gets past it, as frameworks have done."""
    param.grad = torch.zeros_like(param)
    param.grad.data = grad


def test_sparse_gradient_is_refused_with_its_name(device):
    embedding = torch.nn.Embedding(4, 3, sparse=True).to(device)
    other = torch.ones(3, device=device).requires_grad_()
    other.grad = torch.ones_like(other)
    optimizer = gradops.AdamW([("other", other), ("embedding.weight", embedding.weight)])
    embedding(torch.tensor([1, 2], device=device)).sum().backward()
    refused_at_step(optimizer, r"(?i)embedding\.weight.*sparse")


def test_gradient_of_another_shape_is_refused(device):
    optimizer, param = make(gradops.AdamW, device)
    assign_grad_behind_torchs_back(param, torch.ones(7, device=device))
    refused_at_step(optimizer, r"layer\.weight.*shape.*7.*5")


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int32])
def test_gradient_of_another_dtype_family_is_refused(dtype, device):
    optimizer, param = make(gradops.AdamW, device)
    param.grad = None
    param.grad_dtype = None
    try:
        param.grad = torch.ones(5, device=device).to(dtype)
    except (RuntimeError, TypeError):
        pytest.skip("torch itself refuses to assign it")
    refused_at_step(optimizer, r"(?i)layer\.weight")


def test_gradient_on_another_device_is_refused(device):
    optimizer, param = make(gradops.AdamW, device)
    try:
        assign_grad_behind_torchs_back(param, torch.ones(5, device="meta"))
    except RuntimeError:
        pytest.skip("torch itself refuses to assign it")
    refused_at_step(optimizer, r"layer\.weight.*meta")


@pytest.mark.parametrize("offset", [0, 3])
def test_gradient_whose_memory_was_freed_is_refused(offset, device):
    """Sharded training frees what views with an offset still look at."""
    optimizer, param = make(gradops.AdamW, device)
    optimizer.step()
    param.grad = torch.ones(8, device=device)[offset : offset + 5]
    param.grad.untyped_storage().resize_(0)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"grad of 'layer\.weight' has no memory"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


def test_lazily_negated_gradient_is_refused_also_after_an_ordinary_one(device):
    optimizer, param = make(gradops.AdamW, device)
    optimizer.step()
    param.grad = torch._neg_view(torch.ones(5, device=device))
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"grad of 'layer\.weight' is a tensor subclass or a lazy view"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


def test_bad_gradient_of_the_last_parameter_leaves_the_first_untouched(device):
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(3)]
    optimizer = gradops.AdamW(params, lr=0.1)
    for param in params:
        param.grad = torch.ones_like(param)
    assign_grad_behind_torchs_back(params[2], torch.ones(4, device=device))
    refused_at_step(optimizer, "shape")
    params[2].grad = None
    optimizer.step()
    assert params[0][0].item() == pytest.approx(1 - 0.1 - 0.001, rel=1e-5)


def test_step_with_a_loss_scale_but_no_scale_or_backward_raises(device):
    optimizer, param = make(gradops.AdamW, device, loss_scale=8.0)
    refused_at_step(optimizer, r"(?s)scale.*backward|backward.*scale")
    optimizer.backward(param.sum())
    optimizer.step()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"(?s)scale.*backward|backward.*scale"):
        optimizer.step()
    assert_bitwise(snapshot(optimizer), before)


def test_own_loss_scale_together_with_grad_scalers_is_refused(device):
    optimizer, param = make(gradops.AdamW, device, loss_scale=8.0)
    scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
    scaler.scale(param.sum()).backward()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"(?i)loss_scale.*GradScaler|GradScaler.*loss_scale"):
        scaler.step(optimizer)
    assert_bitwise(snapshot(optimizer), before)


def test_unscaling_twice_is_refused(device):
    optimizer, param = make(gradops.AdamW, device, loss_scale=8.0)
    optimizer.backward(param.sum())
    optimizer.unscale_()
    with pytest.raises(RuntimeError, match="unscale_"):
        optimizer.unscale_()


def test_unscaling_what_was_not_scaled_is_refused(device):
    optimizer, _ = make(gradops.AdamW, device, loss_scale=8.0)
    with pytest.raises(RuntimeError, match="scale"):
        optimizer.unscale_()


@pytest.mark.parametrize("loss", [torch.ones(3), "loss", 1.0])
def test_scaling_something_that_is_no_loss_is_refused(loss):
    optimizer, _ = make(gradops.AdamW, loss_scale=8.0)
    with pytest.raises((RuntimeError, TypeError, AttributeError, ValueError)):
        optimizer.backward(loss)
