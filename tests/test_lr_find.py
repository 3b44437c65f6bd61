"""The range test: everything is put back, and the curve explains itself."""

import copy
import math
import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradops
from gradops.lr_curve import LRCurve, LRStep

BATCHES = 6


class Noisy(torch.utils.data.Dataset):
    """Samples with random numbers of their own, as augmentation draws them."""

    def __init__(self):
        self.values = torch.randn(8 * BATCHES, 5, generator=torch.Generator().manual_seed(1))
        self.noise = torch.Generator().manual_seed(2)
        self.more_noise = np.random.default_rng(3)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(5, generator=self.noise) + 0.1 * self.more_noise.normal()
        x = self.values[index] + noise + 0.1 * random.random()
        return x.float(), (self.values[index].sum() > 0).float()


def make_loader(**options):
    return torch.utils.data.DataLoader(Noisy(), batch_size=8, shuffle=True, **options)


def make_model(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1), nn.Flatten(0)
    model = nn.Sequential(*layers).to(dtype)
    model.register_forward_pre_hook(lambda _, args: args[0].to(dtype))
    return model


def loss_fn(outputs, targets):
    return F.binary_cross_entropy_with_logits(outputs.float(), targets)


SCALE = gradops.DynamicLossScale(init_scale=2.0**100, max_scale=2.0**120, growth_interval=2)
OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "AdamW fused, tensor lr": lambda params: torch.optim.AdamW(params, lr=torch.tensor(0.01), fused=True),
    "gradops": lambda params: gradops.AdamW(params, lr=0.01, max_norm=0.2, max_relative_step=0.05, loss_scale=SCALE),
    "gradops, masters": lambda params: gradops.AdamW(params, lr=0.01, max_norm=0.2, master_weights=True),
    "gradops, guard": lambda params: gradops.AdamW(
        params, lr=0.01, guard=gradops.SpikeGuard(ratio=1.0, warmup_steps=1)
    ),
    "gradops, tensor lr": lambda params: gradops.Adam(params, lr=torch.tensor(0.01), clip_value=0.1, amsgrad=True),
}


def trained(make_optimizer, steps_before, range_test, *, steps_after=4, scaler=None, dtype=torch.float32):
    """Everything a run leaves behind, with a range test in its middle or without."""
    model, loader = make_model(dtype), make_loader(generator=torch.Generator().manual_seed(4))
    optimizer = make_optimizer(model.named_parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps_before + steps_after + 1)
    torch.manual_seed(5)
    random.seed(6)
    losses = run(model, optimizer, schedule, loader, steps_before, scaler)
    if range_test:
        range_test(model, optimizer, loader, scaler)
    losses += run(model, optimizer, schedule, loader, steps_after, scaler)
    scale = scaler.state_dict() if scaler else None
    stats = vars(copy.copy(optimizer.stats.clone())) if isinstance(optimizer, gradops.AdamW | gradops.Adam) else None
    return [losses, model.state_dict(), optimizer.state_dict(), schedule.state_dict(), scale, stats, torch.rand(3)]


def run(model, optimizer, schedule, loader, steps, scaler):
    losses = []
    for inputs, targets in loader if steps else ():
        loss = loss_fn(model(inputs), targets)
        optimizer.zero_grad()
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            getattr(optimizer, "backward", torch.Tensor.backward)(loss)
            optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) == steps:
            break
    return losses


def range_test(model, optimizer, loader, scaler):
    gradops.lr_find(model, optimizer, loss_fn, loader, num_steps=BATCHES + 4, scaler=scaler)


def interrupted(model, optimizer, loader, scaler):
    calls = iter(range(BATCHES + 2))

    def stops(outputs, targets):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return loss_fn(outputs, targets)

    with pytest.raises(KeyboardInterrupt):
        gradops.lr_find(model, optimizer, stops, loader, scaler=scaler)


def assert_same(left, right):
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    else:
        assert left == right or (left != left and right != right)


@pytest.mark.parametrize("kind", [range_test, interrupted])
@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_run_goes_on_bit_for_bit_as_if_there_had_been_no_test(name, steps_before, kind):
    dtype = torch.bfloat16 if "masters" in name else torch.float32
    expected = trained(OPTIMIZERS[name], steps_before, None, dtype=dtype)
    assert_same(trained(OPTIMIZERS[name], steps_before, kind, dtype=dtype), expected)


@pytest.mark.parametrize("cls", [torch.amp.GradScaler, gradops.GradScaler])
@pytest.mark.parametrize("name", ["AdamW", "gradops, tensor lr"])
def test_scale_of_a_grad_scaler_is_put_back(name, cls):
    def make_scaler():
        return cls("cpu", init_scale=2.0**20, growth_interval=3)

    expected = trained(OPTIMIZERS[name], 2, None, scaler=make_scaler())
    assert_same(trained(OPTIMIZERS[name], 2, range_test, scaler=make_scaler()), expected)


def test_objects_keep_their_identity_and_gradients_stay():
    model, loader = make_model(), make_loader()
    optimizer = OPTIMIZERS["gradops"](model.named_parameters())
    inputs, targets = next(iter(loader))
    optimizer.backward(loss_fn(model(inputs), targets))
    optimizer.step()
    model.eval()
    groups, state, stats = list(optimizer.param_groups), dict(optimizer.state), optimizer.stats
    grads = [(param.grad, param.grad.clone()) for param in model.parameters()]
    range_test(model, optimizer, loader, None)
    assert all(left is right for left, right in zip(groups, optimizer.param_groups, strict=True))
    assert all(optimizer.state[param] is entry for param, entry in state.items())
    assert optimizer.stats is stats
    for param, (grad, values) in zip(model.parameters(), grads, strict=True):
        assert param.grad is grad
        assert torch.equal(grad, values)
    assert not any(module.training for module in model.modules())


def test_workers_that_outlive_an_epoch_start_afresh():
    def first_batches(test):
        torch.manual_seed(7)
        model, loader = make_model(), make_loader(num_workers=1, persistent_workers=True)
        if test:
            range_test(model, OPTIMIZERS["SGD"](model.parameters()), loader, None)
        return [list(batch) for batch in loader]

    assert_same(first_batches(True), first_batches(False))


def test_recorder_sees_nothing_of_the_test_and_goes_on_after_it():
    model, loader = make_model(), make_loader()
    optimizer = OPTIMIZERS["gradops"](model.named_parameters())
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    with gradops.Recorder(optimizer, model) as recorder:
        run(model, optimizer, schedule, loader, 2, None)
        interrupted(model, optimizer, loader, None)
        assert len(recorder.run().steps) == 2
        run(model, optimizer, schedule, loader, 1, None)
        record = recorder.run()
    assert record.steps.tolist() == [0, 1, 2]
    assert np.isfinite(record.activation_mean).all()


def test_plain_attributes_of_modules_and_a_loss_with_buffers_are_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.last = 0, None
            self.register_buffer("mean", torch.zeros(()), persistent=False)

        def forward(self, outputs, targets):
            self.calls, self.last = self.calls + 1, outputs.detach()
            self.mean = 0.9 * self.mean + 0.1 * outputs.detach().mean()
            return loss_fn(outputs, targets)

    model, counting = make_model(), Counting()
    mean = counting.mean
    gradops.lr_find(model, OPTIMIZERS["SGD"](model.parameters()), counting, make_loader(), num_steps=10)
    assert (counting.calls, counting.last) == (0, None)
    assert counting.mean is mean
    assert mean == 0


def test_rates_grow_exponentially_and_groups_keep_their_ratio():
    model, seen = make_model(), []
    params = list(model.parameters())
    groups = zip(params[:3], (0.1, 0.01, torch.tensor(0.01)), strict=True)
    optimizer = torch.optim.SGD([{"params": [param], "lr": lr} for param, lr in groups])
    optimizer.register_step_pre_hook(lambda *_: seen.append([float(group["lr"]) for group in optimizer.param_groups]))
    curve = gradops.lr_find(model, optimizer, loss_fn, make_loader(), start_lr=1e-4, end_lr=1e-1, num_steps=10)
    np.testing.assert_allclose(curve.lrs, np.geomspace(1e-4, 1e-1, 10))
    np.testing.assert_allclose(seen, np.outer(curve.lrs, [1.0, 0.1, 0.1]), rtol=1e-6)


def test_curve_shows_clipped_capped_and_skipped_steps_and_says_so():
    model = make_model()
    never = gradops.DynamicLossScale(init_scale=2.0**126, max_scale=2.0**126, backoff_factor=0.5)
    optimizer = gradops.AdamW(model.parameters(), max_norm=1e-3, max_relative_step=1e-3, loss_scale=never)
    curve = gradops.lr_find(model, optimizer, lambda *batch: 64 * loss_fn(*batch), make_loader(), num_steps=40)
    skipped = [step.skipped for step in curve.steps]
    assert 0 < sum(skipped) < 40
    assert all(math.isfinite(step.grad_norm) != step.skipped for step in curve.steps)
    assert all(step.clipped != step.skipped for step in curve.steps)
    assert [step.capped for step in curve.steps][-1]
    said = str(curve)
    assert f"{sum(skipped)} steps were skipped for an inf or NaN" in said
    assert f"{40 - sum(skipped)} of 40 steps were clipped to max_norm 0.001" in said
    assert "max_relative_step bound in" in said
    assert "never rose above 4 times its lowest, up to 10" in said


def test_dead_network_that_guesses_is_named_as_what_bounds_the_curve():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    optimizer = gradops.AdamW(model.parameters(), max_norm=1.0)
    curve = gradops.lr_find(model, optimizer, loss_fn, make_loader(), end_lr=100.0, stop_ratio=math.inf)
    dead = [step for step in curve.steps if step.output_spread == 0]
    assert dead
    assert "the model gave every input the same answer" in str(curve)


def test_test_ends_when_the_loss_leaves():
    model = make_model()
    curve = gradops.lr_find(model, torch.optim.SGD(model.parameters()), loss_fn, make_loader(), end_lr=1e6)
    assert curve.diverged
    assert len(curve.steps) < 100
    assert "The test ended at" in str(curve)
    nan = gradops.lr_find(
        model, torch.optim.SGD(model.parameters()), lambda outputs, _: outputs.sum() * math.nan, make_loader()
    )
    assert len(nan.steps) == 1
    assert "The loss is nan" in str(nan)


def made_curve(losses, **options):
    curve = LRCurve(max_norm=None, stop_ratio=4.0, optimizer="SGD")
    for i, loss in enumerate(losses):
        curve.append(LRStep(10 ** (-6 + 7 * i / 99), loss, 1.0, 1.0, clipped=False, capped=False, skipped=False))
    return curve


def test_one_bad_batch_moves_neither_curve_nor_suggestion():
    losses = [1.0] * 40 + [1 - 0.02 * i for i in range(1, 26)] + [0.5] * 35
    smooth = made_curve(losses)
    for place, loss in ((30, 40.0), (30, 0.01), (80, 40.0)):
        disturbed = made_curve([*losses[:place], loss, *losses[place + 1 :]])
        np.testing.assert_allclose(disturbed.smoothed, smooth.smoothed, atol=0.01)
        assert disturbed.suggestion == smooth.suggestion


def test_suggestion_is_where_nine_tenths_of_the_fall_are_made():
    assert made_curve([1.0] * 40 + [1 - 0.02 * i for i in range(1, 26)] + [0.5] * 20).suggestion == pytest.approx(
        10 ** (-6 + 7 * 62 / 99)
    )
    assert made_curve([1.0] * 100).suggestion is None
    assert made_curve([1.0 + 0.01 * i for i in range(100)]).suggestion is None
    assert "never fell" in str(made_curve([1.0] * 100))


@pytest.mark.parametrize("outer", [False, True])
def test_autocast_computes_with_the_weights_as_they_are_now(outer):
    model, dtypes, outputs = nn.Linear(5, 1), [], []

    def watched(output, targets):
        dtypes.append(output.dtype)
        outputs.append(output.detach().float().mean())
        return loss_fn(output.flatten(), targets)

    batch = (torch.ones(4, 5), torch.ones(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outer):
        dtype = None if outer else torch.bfloat16
        gradops.lr_find(
            model, optimizer, watched, [batch], start_lr=1.0, end_lr=10.0, num_steps=10, autocast_dtype=dtype
        )
    assert set(dtypes) == {torch.bfloat16}
    assert outputs[-1] > outputs[0] + 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start_lr": 0.0}, ValueError, "start_lr and end_lr"),
        ({"end_lr": 1e-9}, ValueError, "start_lr and end_lr"),
        ({"num_steps": 9}, ValueError, "num_steps must be at least 10"),
        ({"stop_ratio": 1.0}, ValueError, "stop_ratio must be above 1"),
        ({"loader": []}, ValueError, "the loader is empty"),
        ({"loader": iter([1])}, TypeError, "could not be put back"),
        ({"optimizer": object()}, TypeError, "OptimWrapper"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    model = make_model()
    given = {"optimizer": torch.optim.SGD(model.parameters()), "loader": make_loader(), **arguments}
    with pytest.raises(error, match=message):
        gradops.lr_find(model, given.pop("optimizer"), loss_fn, given.pop("loader"), **given)


def test_picture_is_written_and_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    curve = made_curve([1.0] * 50 + [0.5] * 30 + [2.0, math.inf])
    figure = curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert any("suggested" in text.get_text() for text in figure.axes[0].texts)
    monkeypatch.delitem(sys.modules, "gradops.lr_picture")
    monkeypatch.delattr(gradops, "lr_picture")
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ModuleNotFoundError, match=r"gradops\[report\]"):
        curve.plot()


def test_fastais_lr_find_leaks_nothing_of_a_wrapped_optimizer(tmp_path):
    pytest.importorskip("fastai.callback.schedule")  # gives learners their lr_find
    from fastai.basics import Callback, DataLoaders, Learner
    from fastai.optimizer import OptimWrapper

    loader = make_loader()
    model = make_model()
    scale = gradops.DynamicLossScale(init_scale=2.0**126, max_scale=2.0**126, growth_interval=2)

    def opt_func(params, **options):
        return OptimWrapper(params, gradops.AdamW, max_norm=0.2, loss_scale=scale, **options)

    class ScaledLoss(Callback):
        def before_backward(self):
            self.learn.loss_grad = self.opt.opt.scale(self.loss_grad)

    learner = Learner(DataLoaders(loader, loader), model, loss_fn, opt_func=opt_func, path=tmp_path, cbs=ScaledLoss())
    learner.create_opt()
    optimizer = learner.opt.opt
    for inputs, targets in loader:
        optimizer.zero_grad()
        optimizer.backward(loss_fn(model(inputs), targets))
        optimizer.step()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    learner.lr_find(num_it=20, show_plot=False, suggest_funcs=None)
    assert int(optimizer.stats.steps_taken) + int(optimizer.stats.steps_skipped) == BATCHES
    assert_same([model.state_dict(), optimizer.state_dict()], before)
