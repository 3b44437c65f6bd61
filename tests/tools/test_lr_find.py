"""The range test puts everything back."""

import copy
import random

import numpy as np
import pytest
import torch
from quick import slow_but
from range_tests import BATCHES, loss_fn, make_loader, make_model
from rules import CLASSES, table_of
from torch import nn

import gradops

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


# Each class with the last of its options, averaged.
EVERY_RULE = {
    cls.__name__: lambda params, cls=cls: cls(
        params, **[*table_of(cls).options.values()][-1], max_norm=0.2, ema=gradops.WeightEma(0.75)
    )
    for cls in CLASSES
}


def trained(make_optimizer, steps_before, range_test, *, steps_after=4, scaler=None, dtype=torch.float32):
    """Everything a run leaves behind, with a range test in its middle or without."""
    model, loader = make_model(dtype), make_loader(generator=torch.Generator().manual_seed(4))
    optimizer = make_optimizer(model.named_parameters())
    cycles = bool(optimizer.defaults.keys() & {"betas", "momentum"})
    total = steps_before + steps_after + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total, cycle_momentum=cycles)
    torch.manual_seed(5)
    random.seed(6)
    losses = run(model, optimizer, schedule, loader, steps_before, scaler)
    if range_test:
        range_test(model, optimizer, loader, scaler)
    losses += run(model, optimizer, schedule, loader, steps_after, scaler)
    scale = scaler.state_dict() if scaler else None
    stats = vars(copy.copy(optimizer.stats.clone())) if hasattr(optimizer, "stats") else None
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


@pytest.mark.parametrize("name", slow_but(["SGD", "NAdam"], EVERY_RULE))
def test_run_of_every_rule_goes_on_bit_for_bit(name):
    expected = trained(EVERY_RULE[name], 3, None)
    assert_same(trained(EVERY_RULE[name], 3, range_test), expected)


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
        # By fork: torch starts no worker otherwise for a dataset that has a torch.Generator.
        workers = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
        model, loader = make_model(), make_loader(**workers)
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
