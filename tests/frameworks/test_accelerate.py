"""`gradops.accelerate` under the real Accelerator: clipping in the step, skipped steps, accumulation, schedulers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("accelerate")

import accelerate

import gradops
from gradops import accelerate as ga
from gradops.optim.classes import classes, torchs_class

pytestmark = pytest.mark.usefixtures("fresh_states")

CLOSE = {"rtol": 2e-4, "atol": 2e-6}
BATCHES = 6


def with_scaler(accelerator, scaler_cls=gradops.GradScaler):
    """float16's scaler, which Accelerate does not make on a CPU."""
    accelerator.scaler = scaler_cls("cpu", init_scale=256.0, growth_interval=4)
    accelerator.native_amp = True
    accelerator.state._mixed_precision = "fp16"
    accelerator.autocast = lambda *_, **__: torch.autocast("cpu", dtype=torch.float16)
    return accelerator


def make(accelerator_cls=ga.Accelerator, **options):
    return accelerator_cls(cpu=True, **options)


class Training:
    """A loop as Accelerate's documentation has it."""

    def __init__(self, accelerator, poison=(), optimizer=torch.optim.AdamW):
        torch.manual_seed(0)
        self.accelerator, self.poison = accelerator, poison
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        adam = optimizer(model.named_parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(adam, 0.9)
        rows = TensorDataset(torch.randn(4 * BATCHES, 8), torch.randn(4 * BATCHES, 2))
        prepared = accelerator.prepare(model, adam, DataLoader(rows, batch_size=4), scheduler)
        self.model, self.optimizer, self.data, self.scheduler = prepared
        self.norms, self.skipped, self.rates = [], [], []

    def run(self, clip=None, norm_type=2):
        for index, (inputs, targets) in enumerate(self.data):
            with self.accelerator.accumulate(self.model):
                loss = F.mse_loss(self.model(inputs).float(), targets) * (math.inf if index in self.poison else 1)
                self.accelerator.backward(loss)
                if clip and self.accelerator.sync_gradients:
                    self.norms.append(self.accelerator.clip_grad_norm_(self.model.parameters(), clip, norm_type))
                self.optimizer.step()
                self.skipped.append(self.optimizer.step_was_skipped)
                self.scheduler.step()
                self.optimizer.zero_grad()
                self.rates.append(self.scheduler.get_last_lr()[0])
        return self

    def weights(self):
        return [param.detach().clone() for param in self.model.parameters()]


@pytest.mark.parametrize(("clip", "norm_type"), [(0.1, 2), (0.1, 1), (math.inf, 2), (None, 2)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_loop_equals_accelerates(clip, norm_type, accumulate):
    theirs, ours = (
        Training(make(cls, gradient_accumulation_steps=accumulate)).run(clip, norm_type)
        for cls in (accelerate.Accelerator, ga.Accelerator)
    )
    torch.testing.assert_close(ours.weights(), theirs.weights(), **CLOSE)
    assert [float(norm) for norm in ours.norms] == pytest.approx([float(norm) for norm in theirs.norms], rel=1e-4)
    assert ours.rates == theirs.rates
    assert int(ours.optimizer.stats.steps_taken) == BATCHES // accumulate


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_step_was_skipped_is_true_when_it_was(scaled, clip):
    """With the scaler's flag on the optimizer, Accelerate itself says False always: its issue 4242."""
    accelerator = with_scaler(make()) if scaled else make()
    training = Training(accelerator, poison=(1, 2, 4)).run(clip)
    assert training.skipped == [False, True, True, False, True, False]
    assert training.accelerator.optimizer_step_was_skipped is False
    assert len(set(training.rates)) == 3
    assert all(weight.isfinite().all() for weight in training.weights())
    if scaled:
        assert training.optimizer.stats.loss_scale.item() == 32.0


def test_plain_accelerate_does_not_notice_our_skips():
    accelerator = with_scaler(make(accelerate.Accelerator), torch.amp.GradScaler)
    training = Training(accelerator, poison=(1,), optimizer=gradops.AdamW).run()
    assert training.skipped == [False] * BATCHES
    assert int(training.optimizer.optimizer.stats.steps_skipped) == 1


def test_clipping_with_a_scaler_equals_accelerates():
    theirs = Training(with_scaler(make(accelerate.Accelerator), torch.amp.GradScaler)).run(0.1)
    ours = Training(with_scaler(make())).run(0.1)
    torch.testing.assert_close(ours.weights(), theirs.weights(), **CLOSE)
    assert [float(norm) for norm in ours.norms] == pytest.approx([float(norm) for norm in theirs.norms], rel=1e-3)


def test_clipping_writes_no_gradient():
    training = Training(make())
    inputs, targets = next(iter(training.data))
    training.accelerator.backward(F.mse_loss(training.model(inputs), targets))
    before = [(param.grad.clone(), param.grad._version) for param in training.model.parameters()]
    norm = training.accelerator.clip_grad_norm_(training.model.parameters(), 1e-3)
    exact = torch.stack([grad.norm() for grad, _ in before]).norm()
    torch.testing.assert_close(norm, exact)
    training.optimizer.step()
    assert torch.equal(norm, training.optimizer.stats.grad_norm)
    assert training.optimizer.stats.clip_coef.item() == pytest.approx(1e-3 / exact.item(), rel=1e-3)
    for (grad, version), param in zip(before, training.model.parameters(), strict=True):
        assert torch.equal(param.grad, grad)
        assert param.grad._version == version


def test_parameters_without_a_gradient_do_not_keep_clipping_out_of_the_step():
    training = Training(make())
    training.model[0].requires_grad_(False)
    inputs, targets = next(iter(training.data))
    training.accelerator.backward(F.mse_loss(training.model(inputs), targets))
    before = training.model[2].weight.grad.clone()
    training.accelerator.clip_grad_norm_(training.model.parameters(), 1e-2)
    training.accelerator.clip_grad_norm_(training.model[2].parameters(), 1e-3)
    training.optimizer.step()
    assert training.model[2].weight.grad.norm() > 5e-3  # the second call saw the first one's clipping, and clips later
    assert training.model[2].weight.grad.norm() < before.norm()
    assert training.optimizer.stats.clip_coef.item() < 1


def test_returned_norms_are_each_steps_own():
    training = Training(make()).run(0.1)
    assert len({float(norm) for norm in training.norms}) == BATCHES


def test_clipping_holds_for_one_step_and_the_optimizers_own_comes_back():
    training = Training(make(), optimizer=lambda params, lr: gradops.AdamW(params, lr, max_norm=70.0, norm_type=1.0))
    training.run(0.1)
    assert (training.optimizer.optimizer.max_norm, training.optimizer.optimizer.norm_type) == (70.0, 1.0)
    training.run()
    assert training.optimizer.stats.clip_coef.item() == 1.0


@pytest.mark.parametrize("scaled", [False, True])
def test_norm_of_some_of_the_parameters_is_clipped_by_accelerate(scaled):
    results = []
    for cls in (accelerate.Accelerator, ga.Accelerator):
        scaler_cls = torch.amp.GradScaler if cls is accelerate.Accelerator else gradops.GradScaler
        training = Training(with_scaler(make(cls), scaler_cls) if scaled else make(cls))
        inputs, targets = next(iter(training.data))
        training.accelerator.backward(F.mse_loss(training.model(inputs).float(), targets))
        norm = training.accelerator.clip_grad_norm_(training.model[0].parameters(), 0.01)
        training.optimizer.step()
        results.append([norm, *training.weights()])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def test_clipping_by_value_is_done_in_the_step():
    results = []
    for cls in (accelerate.Accelerator, ga.Accelerator):
        training = Training(make(cls))
        inputs, targets = next(iter(training.data))
        training.accelerator.backward(F.mse_loss(training.model(inputs), targets))
        training.accelerator.clip_grad_value_(training.model.parameters(), 0.01)
        training.optimizer.step()
        results.append([training.optimizer.state_dict()["state"][0]["exp_avg"], *training.weights()])
    torch.testing.assert_close(results[1], results[0], **CLOSE)
    assert training.optimizer.optimizer.clip_value is None
    assert results[1][0].abs().max() <= 0.001 * 1.0001
    assert training.model[0].weight.grad.abs().max() > 0.01


@pytest.mark.parametrize("cls", classes().values(), ids=classes())
def test_every_optimizer_is_wrapped_and_clips_in_its_step(cls):
    torchs = torchs_class(cls)
    if torchs is None:
        pytest.skip("torch has no such optimizer")
    theirs, ours = (
        Training(make(kind), optimizer=torchs).run(0.1) for kind in (accelerate.Accelerator, ga.Accelerator)
    )
    assert type(ours.optimizer.optimizer) is cls
    assert float(ours.optimizer.stats.clip_coef) < 1
    torch.testing.assert_close(ours.weights(), theirs.weights(), **CLOSE)


def test_optimizers_of_other_kinds_stay_accelerates():
    training = Training(make(), optimizer=lambda params, lr: torch.optim.Rprop(params, lr)).run(0.1)
    assert not isinstance(training.optimizer, ga.OnePassOptimizer)
    assert float(training.norms[0]) > 0


def test_state_saved_and_loaded_continues_bitwise(tmp_path):
    whole = Training(with_scaler(make()), poison=(1,)).run(0.1)
    whole.accelerator.save_state(tmp_path)
    rest = Training(with_scaler(make()), poison=(1,))
    rest.accelerator.load_state(tmp_path)
    assert rest.accelerator.scaler.get_scale() == whole.accelerator.scaler.get_scale()
    for training in (whole, rest):
        training.run(0.1)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rest.weights(), whole.weights(), strict=True))
    assert int(rest.optimizer.stats.steps_skipped) == 2


def test_prepared_optimizer_can_be_copied():
    training = Training(make()).run(0.1)
    twin = copy.deepcopy(training.optimizer)
    assert int(twin.stats.steps_taken) == BATCHES
    assert twin.step_was_skipped is False


def test_upgrade_replaces_the_scaler_and_keeps_its_settings():
    accelerator = with_scaler(make(accelerate.Accelerator), torch.amp.GradScaler)
    assert ga.upgrade(accelerator) is accelerator
    assert isinstance(accelerator, ga.Accelerator)
    assert isinstance(accelerator.scaler, gradops.GradScaler)
    assert accelerator.scaler.get_scale() == 256.0
    assert accelerator.scaler.get_growth_interval() == 4
    assert ga.upgrade(accelerator) is accelerator


@pytest.mark.parametrize("init_scale", [2.0**25, 2.0**-20])
def test_upgrade_keeps_any_scale_and_what_has_moved_it(init_scale):
    accelerator = make(accelerate.Accelerator)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=4)
    assert ga.upgrade(make(accelerate.Accelerator)).scaler is None
    scaled = accelerator.scaler.scale(torch.ones(()))
    accelerator.scaler._growth_tracker.fill_(3)
    assert ga.upgrade(accelerator).scaler.scale(torch.ones(())) == scaled == init_scale
    assert accelerator.scaler._get_growth_tracker() == 3


def test_upgrade_refuses_what_it_would_break():
    class Other(accelerate.Accelerator):
        pass

    with pytest.raises(TypeError, match="Other"):
        ga.upgrade(make(Other))
    used = make(accelerate.Accelerator)
    Training(used)
    with pytest.raises(RuntimeError, match="already"):
        ga.upgrade(used)


def test_wrapping_a_prepared_optimizer_says_what_to_do():
    prepared = Training(make(accelerate.Accelerator)).optimizer
    with pytest.raises(
        TypeError, match=r"AcceleratedOptimizer, .*; wrap that one before prepare\(\).*, or use gradops"
    ):
        gradops.wrap(prepared)
