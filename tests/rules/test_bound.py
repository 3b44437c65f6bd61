"""max_relative_step for rules whose update has the gradient's size: it is part of the bound."""

import math

import pytest
import torch

import gradops
from gradops.reference.update import adapts, rms
from rules import CLASSES, reference_of, torchs

BOUND = [cls for cls in CLASSES if not cls.rule.scale_free]
REFUSED = {
    "norm": ({"norm_type": math.inf}, "norm_type must be 2, got inf"),
    "agc": ({"clip_mode": "agc", "max_norm": 0.01}, "clip_mode='agc' clips it unit by unit"),
}

pytestmark = pytest.mark.parametrize("cls", BOUND)


def one(device, value=2.0):
    param = torch.full((3, 4), value, device=device).requires_grad_()
    param.grad = torch.full_like(param, 5.0)
    return param


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("l1", [0.0, 0.25])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_first_step_moves_a_tensor_by_the_cap_times_its_size(cls, weight_decay, l1, max_norm, device):
    """Of gradient, decay and weights that all point one way, the RMS of the sum is the sum of RMS."""
    param = one(device)
    optimizer = cls([param], lr=1e4, weight_decay=weight_decay, l1=l1, max_norm=max_norm, max_relative_step=0.05)
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full_like(param, 2.0 - 0.05 * 2.0))
    assert optimizer.stats.capped.tolist() == [True]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_each_update_is_bounded_by_the_gradients_size_as_long_as_it_has_that(cls, weight_decay, device):
    """Torch's class takes the bound for its rate."""
    if torchs(cls) is None:
        pytest.skip("torch has no such class")
    params = [one(device), one(device)]
    optimizer = cls([params[0]], lr=1e4, weight_decay=weight_decay, max_relative_step=0.05)
    theirs = torchs(cls)([params[1]], lr=1.0, weight_decay=weight_decay)
    rule, group, adapted = reference_of(cls), theirs.param_groups[0], []
    for step in range(1, 9):
        grad = torch.randn_like(params[0])
        adapted.append(adapts(rule, group, step))
        size = 1.0 if adapted[-1] else rms(grad) + weight_decay * rms(params[1].detach())
        group["lr"] = 0.05 * rms(params[1].detach()) / size
        for param, each in zip(params, (optimizer, theirs), strict=True):
            param.grad = grad.clone()
            each.step()
        assert optimizer.stats.capped.tolist() == [True]
        torch.testing.assert_close(*params)
    assert set(adapted) == ({False, True} if hasattr(rule, "adapts") else {rule.SCALE_FREE})


def test_a_rate_below_the_bound_is_left_alone(cls, device):
    params = [one(device), one(device)]
    for param, cap in zip(params, (None, 0.05), strict=True):
        optimizer = cls([param], lr=1e-3, max_relative_step=cap)
        optimizer.step()
        assert optimizer.stats.capped.tolist() == [False]
    assert torch.equal(*params)


def test_nothing_bounds_a_tensor_without_a_gradient_to_speak_of(cls, device):
    param = one(device)
    param.grad.zero_()
    optimizer = cls([param], lr=1e4, max_relative_step=0.05)
    optimizer.step()
    assert torch.equal(param.detach(), torch.full_like(param, 2.0))
    assert optimizer.stats.capped.tolist() == [False]


def test_a_skipped_step_caps_nothing(cls, device):
    param = one(device)
    param.grad[0, 0] = math.nan
    optimizer = cls([param], lr=1e4, max_relative_step=0.05)
    optimizer.step()
    assert torch.equal(param.detach(), torch.full_like(param, 2.0))
    assert optimizer.stats.capped.tolist() == [False]


@pytest.mark.parametrize(("settings", "said"), REFUSED.values(), ids=REFUSED)
def test_settings_that_hide_the_gradients_norm_are_refused_before_anything_changes(cls, settings, said, device):
    param = one(device)
    with pytest.raises(ValueError, match=said):
        cls([param], lr=0.1, max_relative_step=0.05, **settings)
    if torchs(cls) is not None:
        plain = torchs(cls)([param], lr=0.1)
        with pytest.raises(ValueError, match=said):
            gradops.wrap(plain, max_relative_step=0.05, **settings)
        assert type(plain) is torchs(cls)
    optimizer = cls([param], lr=0.1, max_relative_step=0.05)
    for name, value in settings.items():
        setattr(optimizer, name, value)
    with pytest.raises(ValueError, match=said):
        optimizer.step()
    assert torch.equal(param.detach(), torch.full_like(param, 2.0))
    optimizer.max_relative_step = None
    if cls.rule.needs_norms:  # for its own step
        with pytest.raises(ValueError, match=said):
            optimizer.step()
        return
    optimizer.step()
    assert not torch.equal(param.detach(), torch.full_like(param, 2.0))
