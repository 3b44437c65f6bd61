"""gradops.GradScaler: one pass, and a skip that is known."""

import math

import pytest
import torch
from scaler_loops import OPTIONS, loop

import gradops


def test_our_scaler_makes_no_extra_pass(device):
    """Neither a kernel of torch's amp nor a write to any gradient."""
    param = torch.ones(4, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param]), gradops.GradScaler(device.type, **OPTIONS)
    for value in (1.0, math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((param * value).sum()).backward()
        version = param.grad._version
        with torch.profiler.profile() as profile:
            scaler.step(optimizer)
        assert not [event.key for event in profile.key_averages() if "_amp_foreach" in event.key]
        assert param.grad._version == version
        scaler.update()


def sweeps(step, shape):
    """How many operators read or wrote a tensor of this shape, or a list, whose shapes the profiler does not tell."""
    with torch.profiler.profile(record_shapes=True) as profile:
        step()
    return sum(list(shape) in event.input_shapes or "_foreach_" in event.name for event in profile.events())


def test_a_step_by_our_scaler_touches_the_gradients_as_often_as_one_without(device):
    """By the profiler: no operator looks at a tensor of the gradient's shape besides those of the step itself."""
    param = torch.ones(123, 7, device=device).requires_grad_()
    optimizer = gradops.AdamW([param])
    found = {}
    for scaler_cls in (gradops.GradScaler, torch.amp.GradScaler):
        scaler = scaler_cls(device.type, **OPTIONS)
        for _ in range(2):  # the first of them binds the optimizer
            param.grad = None
            scaler.scale(param.sum()).backward()
            found[scaler_cls] = sweeps(lambda scaler=scaler: scaler.step(optimizer), param.shape)
            scaler.update()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0, device=device), torch.tensor(0.0, device=device)
    plain = sweeps(optimizer.step, param.shape)
    assert found[gradops.GradScaler] == plain
    assert found[torch.amp.GradScaler] > plain


@pytest.mark.parametrize("optimizer_cls", [torch.optim.SGD, torch.optim.AdamW])
def test_our_scaler_is_torchs_for_other_optimizers(optimizer_cls, device):
    values = [1.0, math.inf, 0.5, math.nan, 2.0, 2.0]
    expected = loop(torch.amp.GradScaler, optimizer_cls, values, device)
    ours = loop(gradops.GradScaler, optimizer_cls, values, device)
    assert torch.equal(ours[0], expected[0])
    assert ours[1] == expected[1]


def test_state_of_the_scaler_is_exchangeable_with_torchs(device):
    ours, torchs = gradops.GradScaler(device.type, **OPTIONS), torch.amp.GradScaler(device.type)
    torchs.load_state_dict(ours.state_dict())
    assert torchs.get_scale() == 1024.0
    torchs.update(64.0) if torchs._scale is not None else torchs.scale(torch.ones((), device=device))
    ours.load_state_dict(torchs.state_dict())
    assert ours.get_scale() == torchs.get_scale()
    assert isinstance(ours, torch.amp.GradScaler)


@pytest.mark.parametrize("bad", [0.0, 1.0])
def test_scaler_without_an_own_scale_may_follow_a_direct_step(bad, device):
    """Stepping without the scaler in between leaves nothing sticky."""
    param = torch.ones(3, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param], lr=0.1), gradops.GradScaler(device.type, **OPTIONS)
    scaler.scale((param * (math.inf if bad else 1.0)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert int(optimizer.stats.steps_taken) == (1 if bad else 2)


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("optimizer_cls", [gradops.AdamW, torch.optim.AdamW, torch.optim.SGD])
def test_scaler_knows_whether_the_last_step_was_skipped(optimizer_cls, unscale, device):
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = optimizer_cls([param], lr=0.1)
    # At the floor, where the scale does not fall and a comparison of scales would see nothing.
    scaler = gradops.GradScaler(device.type, init_scale=4.0, min_scale=4.0)
    assert not scaler.last_step_skipped
    for value in (1.0, math.inf, 1.0, math.nan):
        optimizer.zero_grad()
        scaler.scale((param * value).sum()).backward()
        scaler.unscale_(optimizer) if unscale else None
        scaler.step(optimizer)
        for moment in ("before update", "after update"):
            skipped = scaler.last_step_skipped
            assert (skipped.dtype, skipped.shape, skipped.device.type) == (torch.bool, (), device.type)
            assert bool(skipped) == (not math.isfinite(value))
            scaler.update() if moment == "before update" else None
        assert scaler.get_scale() >= 4.0


def test_each_optimizers_skip_is_known_after_its_step(device):
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(2)]
    optimizers = [gradops.AdamW([params[0]], lr=0.1), gradops.AdamW([params[1]], lr=0.1)]
    scaler = gradops.GradScaler(device.type, **OPTIONS)
    scaler.scale(params[0].sum()).backward()
    scaler.scale((params[1] * math.inf).sum()).backward()
    skipped = []
    for optimizer in optimizers:
        scaler.step(optimizer)
        skipped.append(bool(scaler.last_step_skipped))
    scaler.update()
    assert skipped == [False, True]
    assert scaler.get_scale() == 512.0


def test_an_inf_written_after_unscale_is_known_too(device):
    param = torch.ones(3, device=device).requires_grad_()
    optimizer, scaler = gradops.AdamW([param]), gradops.GradScaler(device.type, **OPTIONS)
    scaler.scale(param.sum()).backward()
    scaler.unscale_(optimizer)
    param.grad[0] = math.inf
    scaler.step(optimizer)
    assert bool(scaler.last_step_skipped)
    assert param.tolist() == [1.0] * 3


@pytest.mark.parametrize("others", [0, 1])
def test_scale_backs_off_when_an_inf_is_written_after_unscale(others, device):
    """Others: with a second optimizer, all of whose steps are fine."""
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(1 + others)]
    optimizers = [gradops.AdamW([param]) for param in params]
    scaler = gradops.GradScaler(device.type, init_scale=64.0, growth_interval=2)
    scales = []
    for poisoned in (True, True, False, False, True):
        for param, optimizer in zip(params, optimizers, strict=True):
            optimizer.zero_grad()
            scaler.scale(param.sum()).backward()
            scaler.unscale_(optimizer)
        if poisoned:
            params[0].grad[0] = math.inf
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales == [32.0, 16.0, 16.0, 32.0, 16.0]
    assert [int(optimizer.stats.steps_skipped) for optimizer in optimizers] == [3] + [0] * others


def test_optimizer_without_gradients_leaves_the_scale_as_it_was_seen(device):
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(2)]
    optimizers = [gradops.AdamW([param]) for param in params]
    scaler = gradops.GradScaler(device.type, init_scale=64.0, growth_interval=10)
    scaler.scale((params[0] * math.inf).sum() + params[1].sum()).backward()
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 32.0
    optimizers[0].zero_grad()  # what its last step found is no matter of this one
    params[1].grad = torch.ones_like(params[1])
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 32.0
    assert not scaler.last_step_skipped


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [(2.0**30, 2.0**24), (0.0, 2.0**-14), (-8.0, 2.0**-14), (math.inf, 2.0**24), (8, 8.0), (torch.tensor(8.0), 8.0)],
)
@pytest.mark.parametrize("used", [False, True])
def test_loaded_scale_is_kept_inside_the_bounds(saved, loaded, used, device):
    scaler = gradops.GradScaler(device.type)
    if used:
        scaler.scale(torch.ones((), device=device))
    scaler.load_state_dict({**scaler.state_dict(), "scale": saved})
    assert scaler.get_scale() == loaded
    assert scaler.scale(torch.ones((), device=device)).item() == loaded


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        ("scale", math.nan, ValueError, "scale is NaN"),
        ("scale", None, TypeError, "scale must be a number"),
        ("growth_factor", 0.0, ValueError, "growth_factor must be"),
        ("growth_factor", math.nan, ValueError, "growth_factor must be"),
        ("backoff_factor", 0.0, ValueError, "backoff_factor must be"),
        ("backoff_factor", 2.0, ValueError, "backoff_factor must be"),
    ],
)
def test_loaded_state_that_no_scaler_can_have_is_refused_before_anything_changes(key, value, error, message, device):
    scaler = gradops.GradScaler(device.type, init_scale=8.0)
    before = scaler.state_dict()
    with pytest.raises(error, match=message):
        scaler.load_state_dict({**before, "scale": 16.0, key: value})
    assert scaler.state_dict() == before


@pytest.mark.parametrize(
    ("new_scale", "scale"),
    [(2.0**30, 2.0**24), (0.0, 2.0**-14), (math.inf, 2.0**24), (4, 4.0), (math.nan, 8.0)],
)
@pytest.mark.parametrize("as_tensor", [None, (), (1,)])
def test_scale_that_is_set_by_hand_is_kept_inside_the_bounds(new_scale, scale, as_tensor, device):
    """NaN in a tensor, of which nobody knows before the device is asked, leaves the scale."""
    scaler = gradops.GradScaler(device.type, init_scale=8.0)
    scaler.scale(torch.ones((), device=device))
    if as_tensor is not None:
        scaler.update(torch.full(as_tensor, new_scale, device=device))
    elif math.isnan(new_scale):
        with pytest.raises(ValueError, match="new_scale is NaN"):
            scaler.update(new_scale)
    else:
        scaler.update(new_scale)
    assert scaler.get_scale() == scale


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"init_scale": 0.0}, ValueError, "init_scale must be positive and finite, got 0.0"),
        ({"init_scale": math.inf}, ValueError, "init_scale must be positive and finite, got inf"),
        ({"init_scale": math.nan}, ValueError, "init_scale must be positive and finite, got nan"),
        ({"init_scale": "dynamic"}, TypeError, "init_scale must be a number"),
        ({"init_scale": 2.0**25, "max_scale": 2.0**24}, ValueError, "max_scale must be at least init_scale.*33554432"),
        ({"min_scale": 2.0**20}, ValueError, "min_scale must be above 0 and at most init_scale.*65536"),
        ({"min_scale": 0.0}, ValueError, "min_scale must be above 0"),
        ({"max_scale": math.nan}, ValueError, "max_scale must be at least init_scale"),
        ({"backoff_factor": 0.0}, ValueError, "backoff_factor must be above 0"),
        # An older torch sees this one itself.
        (
            {"growth_factor": math.nan},
            (ValueError, AssertionError),
            "growth_factor must be finite|growth factor must be > 1",
        ),
    ],
)
def test_scaler_refuses_by_name_what_it_could_not_come_back_from(options, error, message, device):
    with pytest.raises(error, match=message):
        gradops.GradScaler(device.type, **options)
    assert not gradops.GradScaler(
        device.type, enabled=False, **options
    ).is_enabled()  # as torch's, which looks at nothing


def test_a_scale_without_ceiling_stays_finite(device):
    scaler = gradops.GradScaler(device.type, init_scale=2.0**127, max_scale=math.inf)
    scaler.scale(torch.ones((), device=device))
    scaler.update(math.inf)
    assert scaler.get_scale() == torch.finfo(torch.float32).max


@pytest.mark.parametrize("init_scale", [2.0**25, 2.0**-20])
def test_any_first_scale_of_torchs_is_taken(init_scale, device):
    scaler = gradops.GradScaler(device.type, init_scale=init_scale)
    assert scaler.get_scale() == torch.amp.GradScaler(device.type, init_scale=init_scale).get_scale() == init_scale
    assert scaler.min_scale <= init_scale <= scaler.max_scale


def test_last_step_skipped_is_of_the_last_step_whoever_found_the_inf(device):
    params = [torch.ones(3, device=device).requires_grad_() for _ in range(3)]
    optimizers = [gradops.AdamW([params[0]]), gradops.AdamW([params[1]]), torch.optim.SGD([params[2]], lr=0.1)]
    scaler = gradops.GradScaler(device.type, init_scale=64.0)
    scaler.scale(params[0].sum() + params[1].sum() + (params[2] * math.inf).sum()).backward()
    scaler.unscale_(optimizers[1])
    params[1].grad[0] = math.inf
    skipped = []
    for optimizer in optimizers:
        scaler.step(optimizer)
        skipped.append(bool(scaler.last_step_skipped))
    scaler.update()
    assert skipped == [False, True, True]
    assert [bool((param == 1.0).all()) for param in params] == skipped
    assert scaler.get_scale() == 32.0
