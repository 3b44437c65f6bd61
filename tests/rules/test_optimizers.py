"""What every rule's optimizer promises: torch's class in either direction, checkpoints, copies, schedules, scalers."""

import copy
import math
import pickle

import pytest
import torch
from beside import assert_bitwise, params_of, snapshot

import gradops
from rules import CASE_NAMES, CLASSES, EVERY_CASE, TORCHS, torchs

SHAPES = [(5, 7), (), (17,)]
OF_TORCH = [(cls, options) for cls, options in EVERY_CASE if torchs(cls) is not None]
OF_TORCH_NAMES = [name for name, (cls, _) in zip(CASE_NAMES, EVERY_CASE, strict=True) if torchs(cls) is not None]

every_case = pytest.mark.parametrize(("cls", "options"), EVERY_CASE, ids=CASE_NAMES)
every_case_of_torch = pytest.mark.parametrize(("cls", "options"), OF_TORCH, ids=OF_TORCH_NAMES)


def made(cls, options, device, seed=0, dtype=torch.float32, **settings):
    torch.manual_seed(seed)
    params = [torch.randn(shape, device=device).to(dtype).requires_grad_() for shape in SHAPES]
    return cls(params, **copy.deepcopy(options), **settings)


def train(optimizer, steps, seed=1, before_step=lambda step: None):
    torch.manual_seed(seed)
    for step in range(steps):
        for param in params_of(optimizer):
            param.grad = torch.randn_like(param)
        before_step(step)
        optimizer.step()
    return optimizer


def fresh(optimizer, cls, options, device, **settings):
    """Another optimizer of the same weights, without a state."""
    other = made(cls, options, device, **settings)
    for param, source in zip(params_of(other), params_of(optimizer), strict=True):
        param.data.copy_(source.data)
    return other


def assert_same(ours, theirs):
    for mine, other in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=1e-6)
        of_torch = {key: value for key, value in theirs.state.get(other, {}).items() if value is not None}
        for key, value in of_torch.items():
            torch.testing.assert_close(ours.state[mine][key].cpu(), value.cpu(), rtol=2e-5, atol=1e-6)


@every_case_of_torch
def test_wrapped_in_mid_run_and_unwrapped_later_it_trains_as_torchs(cls, options, device):
    optimizer, theirs = (made(torchs(cls), options, device) for _ in range(2))
    train(optimizer, 2)
    assert type(gradops.wrap(optimizer)) is cls
    train(optimizer, 2, seed=2)
    assert type(gradops.unwrap(optimizer)) is torchs(cls)
    train(optimizer, 2, seed=3)
    for seed in (1, 2, 3):
        train(theirs, 2, seed)
    assert_same(optimizer, theirs)
    keys = [sorted(state) for state in theirs.state.values()]
    assert [sorted(state) for state in optimizer.state.values()] == keys


@every_case
def test_a_run_resumed_is_bitwise_the_whole_one(cls, options, device):
    whole = train(made(cls, options, device), 3)
    rest = fresh(whole, cls, options, device)
    rest.load_state_dict(pickle.loads(pickle.dumps(whole.state_dict())))
    train(whole, 2, seed=2), train(rest, 2, seed=2)
    assert_bitwise(snapshot(rest), snapshot(whole))


@every_case_of_torch
def test_a_checkpoint_goes_to_torchs_class_and_back(cls, options, device):
    whole = train(made(cls, options, device), 3)
    theirs = fresh(whole, torchs(cls), options, device)
    theirs.load_state_dict(copy.deepcopy(whole.state_dict()))
    train(theirs, 2, seed=2)
    back = fresh(theirs, cls, options, device)
    back.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(back, 2, seed=3)
    train(train(whole, 2, seed=2), 2, seed=3)
    for mine, expected in zip(params_of(back), params_of(whole), strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=1e-6)


@every_case_of_torch
def test_a_checkpoint_of_torchs_class_goes_on_as_there(cls, options, device):
    theirs = train(made(torchs(cls), options, device), 3)
    ours = fresh(theirs, cls, options, device)
    state = copy.deepcopy(theirs.state_dict())
    for index in range(len(SHAPES)):  # as torch may write that there is none
        state["state"].setdefault(index, dict.fromkeys(cls.rule.moment_names))
    if not cls.rule.counts_as_torch:
        ours.load_state_dict(state)
    else:
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(ours, 2, seed=2), train(theirs, 2, seed=2)
    assert_same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_case_of_torch
def test_unwrapped_half_precision_parameters_step_in_torch(cls, options, dtype, device):
    options = {key: float(value) if key == "lr" else value for key, value in options.items()}
    optimizer = train(made(cls, options, device, dtype=dtype, master_weights=True), 2)
    gradops.unwrap(optimizer)
    entries = [
        value for state in optimizer.state.values() for key, value in state.items() if key not in cls.rule.number_names
    ]
    assert all(value.dtype == dtype for value in entries)
    train(optimizer, 2)
    assert all(param.isfinite().all() for param in params_of(optimizer))


@every_case
def test_copies_keep_everything_and_step_themselves(cls, options, device):
    optimizer = train(made(cls, options, device, max_norm=1.0), 2)
    twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    train(optimizer, 2, seed=2)
    for twin in twins:
        assert (type(twin), twin.max_norm) == (cls, 1.0)
        assert_bitwise(snapshot(train(twin, 2, seed=2)), snapshot(optimizer))


def one_cycle(optimizer):
    has_momentum = bool({"momentum", "betas"} & optimizer.defaults.keys())
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=8, cycle_momentum=has_momentum)


SCHEDULERS = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6),
    "one cycle": one_cycle,
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS)
@every_case_of_torch
def test_schedules_of_rate_and_momentum_are_torchs(cls, options, schedule, device):
    runs = []
    for kind in (cls, torchs(cls)):
        optimizer = made(kind, options, device)
        scheduler = schedule(optimizer)
        for seed in range(5):
            train(optimizer, 1, seed)
            scheduler.step()
        runs.append(optimizer)
    assert_same(*runs)


@pytest.mark.parametrize("scaler_of", [gradops.GradScaler, torch.amp.GradScaler])
@every_case
def test_a_grad_scaler_skips_what_is_not_finite(cls, options, scaler_of, device):
    optimizer, plain = (made(cls, options, device, max_norm=1.0) for _ in range(2))
    scaler = scaler_of(device.type, init_scale=64.0)
    for step in range(4):
        torch.manual_seed(step)
        factor = scaler.get_scale()
        scaler.scale(torch.zeros((), device=device))
        for mine, other in zip(params_of(optimizer), params_of(plain), strict=True):
            other.grad = torch.randn_like(other)
            mine.grad = other.grad * factor
        if step == 1:
            params_of(optimizer)[0].grad[0, 0] = math.inf
        else:
            plain.step()
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 32.0
    for mine, other in zip(params_of(optimizer), params_of(plain), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cls", CLASSES)
def test_statistics_are_of_the_step(cls, device):
    optimizer = train(made(cls, {}, device, max_norm=1.0, track_updates=True), 3)
    norm = torch.stack([param.grad.norm() for param in params_of(optimizer)]).norm()
    torch.testing.assert_close(optimizer.stats.grad_norm, norm)
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (3, 0)
    assert (optimizer.stats.update_ratio > 0).all()


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_is_taken_and_named(cls):
    assert getattr(gradops, cls.__name__) is cls
    if torchs(cls) is not None:
        assert TORCHS[torchs(cls)] is cls
        assert type(gradops.wrap(torchs(cls)([torch.ones(2).requires_grad_()], lr=0.1))) is cls


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls.rule.scale_free])
@pytest.mark.parametrize("settings", [{"norm_type": math.inf}, {"clip_mode": "agc", "max_norm": 0.01}])
def test_a_bound_without_the_gradient_goes_with_every_norm(cls, settings, device):
    train(made(cls, {}, device, max_relative_step=0.01, **settings), 1)
