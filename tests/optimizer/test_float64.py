"""float64 parameters are stepped in float64, by torch's own operations, with everything that a step does."""

import copy
import io
import math

import pytest
import tolerances as tol
import torch
from beside import assert_bitwise, assert_close, params_of, snapshot

import gradops
from gradops.backends.torch import ops as torch_ops
from gradops.reference import Reference

SHAPES = [(40, 30), (17,), (), (0,), (2, 3, 4, 5), (9001,)]
MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
WITHIN = tol.Tolerance(
    1e-12, 1e-12, "several steps of the same formulas in float64; atol x what terms that cancel are of"
)

SETTINGS = {
    "plain": {},
    "max_norm": {"max_norm": 0.3},
    "norm_type 1": {"max_norm": 0.3, "norm_type": 1.0},
    "norm_type 3": {"max_norm": 0.3, "norm_type": 3.0},
    "norm_type inf": {"max_norm": 0.3, "norm_type": math.inf},
    "clip_value": {"max_norm": 0.3, "clip_value": 0.7},
    "loss_scale": {"max_norm": 0.3, "loss_scale": 3.0},
    "cap": {"max_relative_step": gradops.RelativeStepCap(0.01, warmup_steps=4)},
    "agc": {"max_norm": 0.01, "clip_mode": "agc"},
    "l1": {"l1": 0.01, "max_norm": 1.0},
    "guard": {"guard": gradops.SpikeGuard(warmup_steps=2), "max_norm": 100.0},
    "masters": {"master_weights": True},
    "bfloat16 moments": {"moments_dtype": torch.bfloat16},
}


def make(cls=gradops.AdamW, dtype=torch.float64, **options):
    generator = torch.Generator().manual_seed(1)
    params = [
        torch.nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)) for shape in SHAPES
    ]
    return cls(params, **{"lr": 0.1, "weight_decay": 0.1, **options})


def draw(optimizer, step, magnitude=1.0):
    generator = torch.Generator().manual_seed(100 + step)
    size = magnitude * (40.0 if step == 5 else 1.0)
    for param in params_of(optimizer):
        param.grad = size * torch.randn(param.shape, dtype=torch.float64, generator=generator).to(param.dtype)


@pytest.mark.parametrize("magnitude", [1.0, 1e-150, 1e150])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}], ids=["AdamW", "amsgrad"])
def test_float64_steps_are_torchs_in_float64(options, magnitude):
    optimizer = make(max_norm=0.3, **options)
    plain = make(torch.optim.AdamW, foreach=False, **options)
    for step in range(20):
        draw(optimizer, step, magnitude)
        draw(plain, step, magnitude)
        optimizer.step()
        # torch's own norm squares what float64 cannot hold.
        norm = torch.cat([param.grad.flatten() for param in params_of(plain)]).div(magnitude).norm() * magnitude
        for param in params_of(plain):
            param.grad.mul_(min(1.0, 0.3 / (norm.item() + 1e-6)))
        plain.step()
        assert float(optimizer.stats.grad_norm) == pytest.approx(norm.float().item(), rel=1e-6)
    for mine, theirs in zip(params_of(optimizer), params_of(plain), strict=True):
        assert_close(mine, theirs, WITHIN, 1.0)
        for name in MOMENTS[: 2 + options.get("amsgrad", False)]:
            moment = optimizer.state[mine][name]
            assert moment.dtype == torch.float64
            assert_close(moment, plain.state[theirs][name], tol.TORCH_FLOAT64, min(magnitude, 1e-2), name)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_rule_of_a_step_holds_in_float64(name):
    settings = SETTINGS[name]
    optimizer = make(track_updates=True, **settings)
    arguments = {key: value for key, value in settings.items() if key != "moments_dtype"}
    reference = Reference(optimizer.param_groups, dtype=torch.float64, **arguments)
    for step in range(8):
        draw(optimizer, step)
        if step == 3:
            params_of(optimizer)[0].grad[1, 2] = math.nan
        if "loss_scale" in settings:
            optimizer.scale(torch.ones((), dtype=torch.float32))
        optimizer.step()
        seen = reference.step([param.grad for param in params_of(optimizer)])
        stats = optimizer.stats
        for mine, theirs, state in zip(params_of(optimizer), reference.params, reference.states, strict=True):
            assert_close(mine, theirs, WITHIN, 1.0)
            for moment in MOMENTS[:2]:
                assert_close(optimizer.state[mine][moment], state[moment], WITHIN, 1e-2, moment)
        for buffer, value in (
            (stats.grad_norm, seen.grads.grad_norm),
            (stats.clip_coef, seen.clip_coef),
            (stats.norms, seen.grads.norms),
            (stats.abs_max, seen.grads.abs_max),
            (stats.update_ratio, seen.update_ratio),
            (stats.param_rms, seen.param_rms),
        ):
            assert buffer.dtype == torch.float32
            assert_close(buffer, torch.tensor(value).float(), tol.Tolerance(1e-6, 0.0, "one rounding to float32"))
        assert stats.nonfinite.tolist() == seen.grads.nonfinite
        assert stats.capped.tolist() == seen.capped
        assert (int(stats.steps_taken), int(stats.steps_skipped)) == (seen.steps_taken, seen.steps_skipped)
        assert bool(stats.guarded) == seen.guarded
    assert int(optimizer.stats.steps_skipped) >= 1


def test_float64_beside_float32_takes_the_optimizer_through_torchs_operations():
    """Each parameter in the arithmetic of its own dtype."""
    wide, narrow = torch.nn.Parameter(torch.ones(5).double()), torch.nn.Parameter(torch.ones(7))
    optimizer = gradops.AdamW([("wide", wide), ("narrow", narrow)], lr=0.1, max_norm=1.0)
    alone = gradops.AdamW([torch.nn.Parameter(torch.ones(7))], lr=0.1, backend="torch")
    for step in range(3):
        draw(optimizer, step)
        norm = math.sqrt(sum(param.grad.double().square().sum().item() for param in (wide, narrow)))
        params_of(alone)[0].grad = narrow.grad * torch.tensor(min(1.0, 1.0 / (norm + 1e-6)), dtype=torch.float32)
        optimizer.step()
        alone.step()
        assert float(optimizer.stats.grad_norm) == pytest.approx(norm, rel=1e-6)
    assert optimizer.stats.backend == "torch's own operations, since parameter 'wide' is float64"
    assert optimizer.state[wide]["exp_avg"].dtype == torch.float64
    assert optimizer.state[narrow]["exp_avg"].dtype == torch.float32
    torch.testing.assert_close(narrow, params_of(alone)[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_a_backend_that_cannot_step_float64_says_so(backend):
    param = torch.ones(3, dtype=torch.float64).requires_grad_()
    with pytest.raises(RuntimeError, match=rf"backend='{backend}' cannot step parameter 'head': it is float64"):
        gradops.AdamW([("head", param)], backend=backend)
    optimizer = torch.optim.AdamW([("head", param)])
    with pytest.raises(RuntimeError, match="'head': it is float64"):
        gradops.wrap(optimizer, backend=backend)
    assert type(optimizer) is torch.optim.AdamW


def test_a_model_that_becomes_float64_goes_on_in_float64():
    model = torch.nn.Linear(4, 3)
    optimizer = gradops.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    model.double()
    optimizer.zero_grad()
    model(torch.ones(2, 4).double()).square().sum().backward()
    optimizer.step()
    assert all(optimizer.state[param]["exp_avg"].dtype == torch.float64 for param in model.parameters())
    assert int(optimizer.stats.steps_taken) == 2
    assert "is float64" in optimizer.stats.backend


def roads():
    def state_dict(optimizer, fresh):
        fresh.load_state_dict(optimizer.state_dict())
        return fresh

    def saved(optimizer, fresh):
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        fresh.load_state_dict(torch.load(file))
        return fresh

    def plain_torch(optimizer, fresh):
        plain = torch.optim.AdamW(params_of(fresh), lr=0.1, weight_decay=0.1)
        plain.load_state_dict(optimizer.state_dict())
        return gradops.wrap(plain, max_norm=0.3)

    def unwrapped(optimizer, fresh):
        return gradops.wrap(gradops.unwrap(optimizer), max_norm=0.3)

    return {f.__name__: f for f in (state_dict, saved, plain_torch, unwrapped)}


@pytest.mark.parametrize("road", roads())
def test_a_resumed_float64_run_is_the_run_that_was_not_interrupted(road):
    through, straight = make(max_norm=0.3), make(max_norm=0.3)
    for step in range(3):
        for optimizer in (through, straight):
            draw(optimizer, step)
            optimizer.step()
    fresh = make(max_norm=0.3)
    for mine, theirs in zip(params_of(fresh), params_of(through), strict=True):
        mine.data.copy_(theirs)
    through = roads()[road](through, fresh)
    for optimizer in (through, straight):
        draw(optimizer, 7)
        optimizer.step()
    assert_bitwise(snapshot(through), snapshot(straight))


def test_copies_of_a_float64_optimizer_step_alike():
    optimizer = make(max_norm=0.3)
    draw(optimizer, 0)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    for each in (optimizer, twin):
        draw(each, 1)
        each.step()
    assert_bitwise(snapshot(twin), snapshot(optimizer))


def test_unscale_divides_float64_gradients_in_float64():
    optimizer = make(loss_scale=3.0)
    draw(optimizer, 0)
    before = [param.grad.clone() for param in params_of(optimizer)]
    optimizer.scale(torch.ones((), dtype=torch.float32))
    optimizer.unscale_()
    for param, grad in zip(params_of(optimizer), before, strict=True):
        assert_close(param.grad, grad / 3.0, tol.TORCH_FLOAT64)
    optimizer.step()
    assert int(optimizer.stats.steps_taken) == 1


@pytest.mark.parametrize("scaler", [torch.amp.GradScaler, gradops.GradScaler])
def test_float64_under_a_grad_scaler(scaler):
    optimizer, plain = make(), make(torch.optim.AdamW, foreach=False)
    scaler = scaler("cpu", init_scale=3.0)
    for step in range(3):
        draw(optimizer, step)
        draw(plain, step)
        scaler.scale(torch.ones((), dtype=torch.float32))
        for param in params_of(optimizer):
            param.grad *= 3.0
        if step == 1:
            params_of(optimizer)[0].grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update(3.0)
        if step != 1:
            plain.step()
    for mine, theirs in zip(params_of(optimizer), params_of(plain), strict=True):
        assert_close(mine, theirs, WITHIN, 1.0)
    assert int(optimizer.stats.steps_skipped) == 1


def test_clip_grad_norm_clips_float64_in_float64():
    optimizer, plain = make(), make()
    for each in (optimizer, plain):
        draw(each, 0)
    norm = gradops.clip_grad_norm_(params_of(optimizer), 0.3)
    expected = torch.nn.utils.clip_grad_norm_(params_of(plain), 0.3)
    assert norm.dtype == torch.float64
    assert_close(norm, expected, tol.TORCH_FLOAT64)
    for mine, theirs in zip(params_of(optimizer), params_of(plain), strict=True):
        assert_close(mine.grad, theirs.grad, tol.TORCH_FLOAT64)


def test_operators_refuse_float64_with_every_build():
    values = [torch.ones(3, dtype=torch.float64)]
    steps = [torch.zeros((), dtype=torch.float32)]
    for call in (
        lambda: torch.ops.gradops.grad_stats(values),
        lambda: torch.ops.gradops.clip_grad_norm_(values, 1.0),
        lambda: torch.ops.gradops.unscale_(values, steps[0]),
        lambda: torch.ops.gradops.adam_step_(values, values, values, values, [], steps, steps[0]),
    ):
        with pytest.raises(RuntimeError, match=r"(?i)(params|grads) of '0' is (Double|float64); expected float"):
            call()
    assert torch_ops.grad_stats(values)[0].dtype == torch.float64
