"""The norm that our Accelerator returns: there at the call, and Accelerate's own, whatever the loop does with it."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("accelerate")

import accelerate
from test_accelerate import CLOSE, Training, make, with_scaler

import gradops
from gradops import accelerate as ga
from gradops._frameworks import clip_now_, measured_norm

pytestmark = pytest.mark.usefixtures("fresh_states")

BOTH = (accelerate.Accelerator, ga.Accelerator)
SCALERS = {accelerate.Accelerator: torch.amp.GradScaler, ga.Accelerator: gradops.GradScaler}


def trainings(scaled=False, optimizer=torch.optim.AdamW, **options):
    """The same training with Accelerate's Accelerator and with ours, one after the other."""
    for cls in BOTH:
        accelerator = make(cls, **options)
        yield Training(with_scaler(accelerator, SCALERS[cls]) if scaled else accelerator, optimizer=optimizer)


def after_backward(training, factor=1.0):
    inputs, targets = next(iter(training.data))
    training.accelerator.backward(factor * F.mse_loss(training.model(inputs).float(), targets))
    return training.accelerator, training.model.parameters


def same(results):
    theirs, ours = results
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("max_norm", [0.1, math.inf])
@pytest.mark.parametrize("norm_type", [1, 2, 3, math.inf])
def test_norm_is_accelerates_at_the_call(scaled, max_norm, norm_type):
    results = []
    for training in trainings(scaled):
        accelerator, params = after_backward(training)
        norm = accelerator.clip_grad_norm_(params(), max_norm, norm_type)
        read = norm.item()  # before the step
        training.optimizer.step()
        assert norm.shape == ()
        assert norm.item() == read
        results.append([norm, *training.weights()])
    torch.testing.assert_close(results[1], results[0], rtol=2e-3 if scaled else 2e-4, atol=2e-6)


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_norm_at_the_call_is_that_of_the_step(backend):
    training = Training(make(), optimizer=partial(gradops.AdamW, backend=backend))
    accelerator, params = after_backward(training)
    norm = accelerator.clip_grad_norm_(params(), 0.1)
    training.optimizer.step()
    torch.testing.assert_close(norm, training.optimizer.stats.grad_norm)


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        Waits.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("scaled", [False, True])
def test_measuring_waits_for_nothing(scaled):
    training = Training(with_scaler(make()) if scaled else make())
    accelerator, params = after_backward(training)
    Waits.count = 0
    with Waits():
        norm = accelerator.clip_grad_norm_(params(), 0.1)
        assert Waits.count == 0
        norm.item()
    assert Waits.count == 1


@pytest.mark.parametrize("clears", [True, False])
def test_loops_that_step_only_if_the_norm_is_finite_train_as_accelerates(clears):
    """The batch with an inf loss is left out; `clears` says whether its gradients are cleared by the optimizer."""
    results = []
    for training in trainings():
        norms = []
        for index, (inputs, targets) in enumerate(training.data):
            loss = F.mse_loss(training.model(inputs), targets) * (math.inf if index == 2 else 1)
            training.accelerator.backward(loss)
            norms.append(float(training.accelerator.clip_grad_norm_(training.model.parameters(), 0.1)))
            if math.isfinite(norms[-1]):
                training.optimizer.step()
            training.optimizer.zero_grad() if clears else training.model.zero_grad()
        assert [math.isfinite(norm) for norm in norms] == [index != 2 for index in range(len(norms))]
        results.append([torch.tensor(norms)[[0, 1, 3, 4, 5]], *training.weights()])
    assert int(training.optimizer.stats.steps_taken) == len(norms) - 1
    same(results)


def test_clipping_that_no_step_has_done_does_not_reach_other_gradients():
    results = []
    for training in trainings():
        accelerator, params = after_backward(training)
        accelerator.clip_grad_norm_(params(), 1e-3)
        training.optimizer.zero_grad()
        after_backward(training)
        training.optimizer.step()
        results.append([training.optimizer.state_dict()["state"][0]["exp_avg"], *training.weights()])
    same(results)


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_clipping_of_every_micro_batch_is_accelerates(clip):
    """Without `if accelerator.sync_gradients`, what was accumulated is clipped before more is added."""
    results = []
    for training in trainings(gradient_accumulation_steps=3):
        norms = []
        for inputs, targets in training.data:
            with training.accelerator.accumulate(training.model):
                training.accelerator.backward(F.mse_loss(training.model(inputs), targets))
                if clip == "norm":
                    norms.append(training.accelerator.clip_grad_norm_(training.model.parameters(), 0.02))
                else:
                    training.accelerator.clip_grad_value_(training.model.parameters(), 0.01)
                training.optimizer.step()
                training.optimizer.zero_grad()
        results.append([*norms, training.optimizer.state_dict()["state"][0]["exp_avg"], *training.weights()])
    assert int(training.optimizer.stats.steps_taken) == 2
    same(results)


def value(accelerator, params, limit=0.01):
    return accelerator.clip_grad_value_(params(), limit)


def norm(accelerator, params, max_norm=0.05, norm_type=2):
    return accelerator.clip_grad_norm_(params(), max_norm, norm_type)


ORDERS = {
    "norm twice": (norm, partial(norm, max_norm=0.03)),
    "norm and norm alone": (norm, partial(norm, max_norm=math.inf)),
    "norm alone of another kind": (norm, partial(norm, max_norm=math.inf, norm_type=math.inf)),
    "norms of two kinds": (norm, partial(norm, max_norm=0.01, norm_type=math.inf)),
    "value and norm": (value, norm),
    "norm and value": (norm, partial(value, limit=0.004)),
    "value twice": (value, partial(value, limit=0.02)),
    "all to 0": (partial(norm, max_norm=0.0),),
    "value to 0": (partial(value, limit=0.0),),
}


@pytest.mark.parametrize("order", ORDERS)
def test_several_clippings_before_one_step_are_done_in_their_order(order):
    results = []
    for training in trainings():
        given = [clip(*after_backward(training)) for clip in ORDERS[order][:1]]
        given += [clip(training.accelerator, training.model.parameters) for clip in ORDERS[order][1:]]
        training.optimizer.step()
        moment = training.optimizer.state_dict()["state"][0]["exp_avg"]
        results.append([*(one for one in given if one is not None), moment, *training.weights()])
    same(results)


def test_second_call_without_a_step_is_refused_beside_a_scaler_as_accelerate_does():
    """The scale could never go down, and a loop that waits for a finite norm would wait for ever."""
    for training in trainings(scaled=True):
        accelerator, params = after_backward(training)
        accelerator.clip_grad_norm_(params(), 0.1)
        with pytest.raises(RuntimeError, match="called"):
            accelerator.clip_grad_norm_(params(), 0.1)
        training.optimizer.step()
        training.optimizer.zero_grad()
        after_backward(training)
        assert accelerator.clip_grad_norm_(params(), 0.1).isfinite()


@pytest.mark.parametrize("scaled", [False, True])
def test_norm_of_a_batch_with_an_inf_is_not_finite_and_its_step_is_skipped(scaled):
    training = Training(with_scaler(make()) if scaled else make())
    before = training.weights()
    accelerator, params = after_backward(training, math.inf)
    assert not accelerator.clip_grad_norm_(params(), 0.1).isfinite()
    training.optimizer.step()
    assert training.optimizer.step_was_skipped
    assert all(torch.equal(now, was) for now, was in zip(training.weights(), before, strict=True))
    if scaled:
        assert accelerator.scaler.get_scale() == 128.0


def test_gradients_edited_before_the_step_are_clipped_as_they_are_then():
    training = Training(make())
    accelerator, params = after_backward(training)
    norm = accelerator.clip_grad_norm_(params(), 1e-3)
    for param in params():
        param.grad.data.mul_(3.0)  # shows in no version counter
    training.optimizer.step()
    stats = training.optimizer.stats
    assert stats.grad_norm.item() == pytest.approx(3 * norm.item(), rel=1e-5)
    assert stats.clip_coef.item() == pytest.approx(1e-3 / stats.grad_norm.item(), rel=1e-3)


@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_unscaled_before_are_measured_as_they_are(scaled):
    results = []
    for training in trainings(scaled):
        accelerator, params = after_backward(training)
        accelerator.unscale_gradients(training.optimizer)
        results.append(torch.stack([param.grad.norm() for param in params()]).norm())
    torch.testing.assert_close(accelerator.clip_grad_norm_(params(), 0.1), results[1], **CLOSE)
    torch.testing.assert_close(results[1], results[0], rtol=2e-3, atol=0)


def test_norm_is_unscaled_where_the_optimizer_has_its_own_loss_scale():
    results = []
    for own in ({}, {"loss_scale": 1024.0}):
        training = Training(make(), optimizer=partial(gradops.AdamW, **own))
        inputs, targets = next(iter(training.data))
        training.optimizer.optimizer.backward(F.mse_loss(training.model(inputs), targets))
        results.append(training.accelerator.clip_grad_norm_(training.model.parameters(), 0.1))
        training.optimizer.step()
    same(results)


@pytest.mark.parametrize("scaled", [False, True])
def test_clipping_by_norm_is_not_taken_for_adaptive_clipping(scaled):
    """With clip_mode="agc" an optimizer's max_norm is a factor of the weights; the loop's is one of the gradients."""
    training = Training(
        with_scaler(make()) if scaled else make(), optimizer=partial(gradops.AdamW, max_norm=10.0, clip_mode="agc")
    )
    accelerator, params = after_backward(training)
    before = accelerator.clip_grad_norm_(params(), 1e-3)
    assert before > 1e-2
    training.optimizer.step()
    torch.testing.assert_close(training.optimizer.stats.grad_norm.item(), 1e-3, rtol=1e-2, atol=0)
    assert training.optimizer.optimizer.max_norm == 10.0


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_max_norm_out_of_range_is_refused_at_the_call(max_norm):
    training = Training(make())
    accelerator, params = after_backward(training)
    with pytest.raises(ValueError, match="max_norm"):
        accelerator.clip_grad_norm_(params(), max_norm)


@pytest.mark.parametrize("scale", [None, 4.0])
@pytest.mark.parametrize("clip_value", [None, 0.01])
def test_norm_of_float64_gradients_is_measured_and_clipped(scale, clip_value):
    param = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 12, dtype=torch.float64))
    param.grad = param.detach() * (scale or 1.0)
    optimizer, factor = gradops.AdamW([param]), None if scale is None else torch.tensor(scale)
    exact = param.detach().clamp(-(clip_value or math.inf), clip_value or math.inf).norm()
    torch.testing.assert_close(measured_norm(optimizer, factor, clip_value, 2.0), exact)
    clip_now_(optimizer, factor, clip_value=clip_value, max_norm=1e-3)
    torch.testing.assert_close(param.grad.norm() / (scale or 1.0), torch.tensor(1e-3).double(), rtol=1e-2, atol=0)


def test_norm_without_a_gradient_is_0():
    assert measured_norm(gradops.AdamW([torch.nn.Parameter(torch.ones(3))]), None, 1.0, 2.0) == 0


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_norm_of_sharded_gradients_is_measured_and_clipped(one_process):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.distributed.tensor.distribute_tensor(torch.randn(8, 3), mesh))
    param.grad = torch.distributed.tensor.distribute_tensor(torch.randn(8, 3), mesh)
    optimizer, exact = gradops.AdamW([param]), param.grad.full_tensor().norm()
    torch.testing.assert_close(measured_norm(optimizer, torch.tensor(4.0), None, 2.0), exact / 4)
    clamped = param.grad.full_tensor().clamp(-0.4, 0.4).norm()
    torch.testing.assert_close(measured_norm(optimizer, torch.tensor(4.0), 0.1, 2.0), clamped / 4)
    clip_now_(optimizer, torch.tensor(4.0), max_norm=1e-3)
    torch.testing.assert_close(param.grad.full_tensor().norm(), torch.tensor(4e-3), rtol=1e-2, atol=0)
