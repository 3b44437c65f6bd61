"""protect: where a step is skipped, the model's buffers are those of a run that never saw the batch."""

import copy
import io
import math
import pickle

import pytest
import torch
from beside import assert_same_bits
from protected_task import BAD, SEEN, UNSEEN, WAYS, Loop, evaluate, everything, finite, make_batches, make_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradops
from gradops.policies.protect import protected


def assert_same_models(a, b, device="cpu"):
    assert finite(a)
    values, others = everything(a), everything(b)
    assert values.keys() == others.keys()
    for name, value in values.items():
        assert_same_bits(value, others[name], name)
    assert_same_bits(evaluate(a, device), evaluate(b, device), "evaluation")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_bad_batch_leaves_no_trace_in_the_model(way, accumulate, device):
    saw = Loop(way, device).run(SEEN, accumulate)
    assert int(saw.optimizer.stats.steps_skipped) == 1
    assert_same_models(saw.model, Loop(way, device).run(UNSEEN, accumulate).model, device)


@pytest.mark.parametrize("way", ["plain", "guard"])
def test_right_after_the_bad_batch_the_model_is_as_before_it(way, device):
    saw, never = Loop(way, device).run([0, 1, BAD, BAD]), Loop(way, device).run([0, 1])
    assert int(saw.optimizer.stats.steps_skipped) == 2
    assert_same_models(saw.model, never.model, device)


def test_a_bad_first_batch_leaves_no_trace():
    assert_same_models(Loop().run([BAD, 0]).model, Loop().run([0]).model)


def test_without_protect_the_buffers_stay_nan():
    model = Loop(protect=lambda _: None).run(SEEN).model
    assert torch.isnan(model[1].running_mean).any()
    assert not torch.isfinite(evaluate(model)).all()


def test_applied_steps_leave_the_buffers_to_the_forward():
    assert_same_models(Loop().run(UNSEEN).model, Loop(protect=lambda _: None).run(UNSEEN).model)


@pytest.mark.parametrize("kind", [list, tuple, set, iter, nn.ModuleList, nn.Sequential])
def test_several_modules_are_protected_by_one_optimizer(kind):
    def parts(model):
        return kind(list(model)) if kind in (list, tuple, set, iter, nn.ModuleList) else kind(*model)

    assert_same_models(Loop(protect=parts).run(SEEN).model, Loop().run(UNSEEN).model)


def test_only_the_modules_named_are_protected():
    model = Loop(protect=lambda model: model[1]).run([0, BAD]).model
    assert torch.isfinite(model[1].running_mean).all()
    assert torch.isnan(model[6].running_mean).any()


@pytest.mark.parametrize("value", [5, "model", torch.zeros(2), [nn.Linear(1, 1), 3], {"a": nn.Linear(1, 1)}, True])
def test_what_is_no_module_is_refused_before_anything_changed(value):
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    with pytest.raises(TypeError, match=r"^protect must .*torch\.nn\.Module"):
        gradops.wrap(optimizer, protect=value)
    assert type(optimizer) is torch.optim.AdamW
    gradops.wrap(optimizer)
    with pytest.raises(TypeError, match=r"^protect must .*torch\.nn\.Module"):
        optimizer.protect = value
    assert optimizer.protect is None
    with pytest.raises(TypeError, match=r"^protect must .*torch\.nn\.Module"):
        gradops.AdamW(nn.Linear(2, 2).parameters(), protect=value)


def test_wrapping_again_with_another_model_names_the_classes_alone():
    model = make_model()
    optimizer = gradops.AdamW(model.parameters(), protect=model)
    gradops.wrap(optimizer, protect=model)
    with pytest.raises(ValueError, match=r"with protect=Sequential, not \(Linear, Linear\); set optimizer.protect"):
        gradops.wrap(optimizer, protect=[nn.Linear(1, 1), nn.Linear(1, 1)])


def test_protect_is_set_and_unset_at_run_time():
    loop = Loop(protect=lambda _: None).run([0, 1])
    loop.optimizer.protect = loop.model
    loop.run([BAD])
    assert_same_models(loop.model, Loop().run([0, 1]).model)
    loop.optimizer.protect = None
    loop.run([BAD])
    assert torch.isnan(loop.model[1].running_mean).any()


def test_unwrap_leaves_model_and_optimizer_as_torch_makes_them():
    loop = Loop().run([0])
    assert any(module._load_state_dict_post_hooks for module in loop.model.modules())
    gradops.unwrap(loop.optimizer)
    assert vars(loop.optimizer).keys() == vars(torch.optim.AdamW(loop.model.parameters())).keys()
    assert not any(module._load_state_dict_post_hooks for module in loop.model.modules())


@pytest.mark.parametrize("change", ["load", "load a part", "assign", "assign as float64", "refresh_", "set again"])
def test_edits_between_steps_survive_a_skipped_step(change):
    loop, other = Loop().run([0, 1]), Loop().run([3, 4, 3]).model
    before = (loop.model[1].running_mean if change == "load a part" else loop.model[5].mean).clone()
    if change == "load a part":
        loop.model[1].load_state_dict(other[1].state_dict())
    elif change.startswith("assign"):
        values = copy.deepcopy(other[5].state_dict())
        if change == "assign as float64":
            values["mean"] = values["mean"].double()
        loop.model[5].load_state_dict(values, assign=True)
        loop.model[5].mean = loop.model[5].mean.float()
    else:
        loop.model.load_state_dict(other.state_dict())
    if change in ("refresh_", "set again"):
        for module in (loop.model[1], loop.model[6]):
            module.reset_running_stats()
        loop.optimizer.refresh_() if change == "refresh_" else setattr(loop.optimizer, "protect", loop.model)
    loaded = copy.deepcopy(loop.model)
    assert not torch.equal(loaded[5].mean if change != "load a part" else loaded[1].running_mean, before)
    assert_same_models(loop.run([BAD]).model, loaded)


def test_loaded_checkpoints_renew_what_is_kept_in_either_order():
    source = Loop().run([0, 1, 3])
    model, state = copy.deepcopy(source.model.state_dict()), copy.deepcopy(source.optimizer.state_dict())
    for model_first in (True, False):
        loop = Loop().run([4])
        for first in (model_first, not model_first):
            loop.model.load_state_dict(model) if first else loop.optimizer.load_state_dict(state)
        loop.run([BAD])
        for name, value in source.model.state_dict().items():
            assert_same_bits(loop.model.state_dict()[name], value, name)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_protect_their_own_model(way):
    loop = Loop().run([0])
    loop.backward(make_batches()[BAD])  # in the middle of a step
    pair = loop.model, loop.optimizer
    if way == "torch.save":
        file = io.BytesIO()
        torch.save(pair, file)
        file.seek(0)
        model, optimizer = torch.load(file, weights_only=False)
    else:
        model, optimizer = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert optimizer.protect is model
    assert model is not loop.model
    for param, original in zip(model.parameters(), loop.model.parameters(), strict=True):
        param.grad = original.grad.clone()
    polluted = {name: value.clone() for name, value in everything(loop.model).items()}
    optimizer.step()
    assert_same_models(model, Loop().run([0]).model)
    for name, value in everything(loop.model).items():
        assert_same_bits(value, polluted[name], name)
    loop.step()
    assert_same_models(loop.model, model)


def test_a_model_that_refers_to_its_optimizer_is_copied_with_it():
    loop = Loop().run([0])
    loop.model.trainer = loop
    copied = copy.deepcopy(loop.model).trainer
    assert copied.optimizer.protect is copied.model is not loop.model
    assert_same_models(copied.run([BAD]).model, loop.model)


def test_pickled_and_copied_models_need_no_gradops():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = gradops.AdamW(model.parameters(), protect=model)
    pickled = pickle.dumps(model)
    assert b"gradops" not in pickled
    assert optimizer.protect is model
    pickle.loads(pickled).load_state_dict(model.state_dict())
    loop = Loop().run([0])
    copied = copy.deepcopy(loop.model)
    copied.load_state_dict(make_model().state_dict())
    assert_same_models(loop.run([BAD]).model, Loop().run([0]).model)


def test_a_step_without_gradients_neither_keeps_nor_puts_back():
    loop = Loop().run([0])
    loop.model(make_batches()[BAD][0])
    loop.optimizer.step()  # nothing to step: the forward belongs to the next step
    assert torch.isnan(loop.model[1].running_mean).any()
    assert_same_models(loop.run([BAD]).model, Loop().run([0]).model)


def test_models_in_evaluation_keep_their_buffers():
    loop = Loop().run([0])
    loop.model.eval()
    before = {name: value.clone() for name, value in loop.model.named_buffers()}
    loop.run([1, BAD])
    for name, value in loop.model.named_buffers():
        assert_same_bits(value, before[name], name)


def test_a_backward_through_frozen_statistics_may_follow_the_step():
    frozen, head = nn.BatchNorm1d(3).eval().requires_grad_(False), nn.Linear(3, 1)
    inputs = torch.randn(4, 3, requires_grad=True)
    optimizer = gradops.AdamW(head.parameters(), protect=[frozen, head])
    later = frozen(inputs).sum()
    head(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    later.backward()
    assert torch.isfinite(inputs.grad).all()


def test_optimizers_that_protect_the_same_modules_share_what_is_kept():
    def run(bad):
        torch.manual_seed(0)
        maker = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        critic = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        both = [
            gradops.AdamW(maker.parameters(), lr=0.01, protect=[maker, critic]),
            gradops.AdamW(critic.parameters(), lr=0.01, protect=[critic, maker]),
        ]
        for step, inputs in enumerate(torch.randn(6, 8, 2)):
            for phase in (1, 0):
                if (step, phase) == bad[0] and not bad[1]:
                    continue
                worse = math.nan if (step, phase) == bad[0] else 1.0
                critic(maker(inputs * worse)).square().mean().backward()
                both[phase].step()
                for optimizer in both:
                    optimizer.zero_grad()
        return nn.Sequential(maker, critic)

    for bad in ((3, 1), (3, 0)):
        saw, never = run((bad, True)), run((bad, False))
        for name, value in everything(saw).items():
            assert_same_bits(value, everything(never)[name], name)


def test_buffers_that_come_change_shape_or_move_are_followed():
    loop = Loop().run([0])
    loop.model[5].register_buffer("late", torch.zeros(2))
    loop.run([1])
    loop.model[5].late.fill_(1.0)
    loop.run([1])
    loop.model[5].late.fill_(math.nan)
    loop.run([BAD])
    assert torch.equal(loop.model[5].late, torch.ones(2))
    loop.model[5].late = torch.full((3,), 2.0)
    loop.run([BAD])  # what was kept has another shape
    assert torch.equal(loop.model[5].late, torch.full((3,), 2.0))
    loop.model[1].running_mean = loop.model[1].running_mean.double()  # between steps; what was kept follows
    kept = loop.model[1].running_mean.clone()
    loop.model[1].running_mean.fill_(math.nan)
    for param in loop.model.parameters():
        param.grad = torch.full_like(param, math.nan)
    loop.step()
    assert_same_bits(loop.model[1].running_mean, kept, "moved")
    del loop.model[5].late
    loop.model[1].running_mean = loop.model[1].running_mean.float()
    assert finite(loop.run([BAD]).model)


def test_modules_that_take_anothers_place_are_protected():
    model = make_model()
    del model[5]  # it makes new tensors in each forward, which are looked for anyway
    loop = Loop(model=model).run([0])
    loop.model[1] = nn.BatchNorm2d(3)
    loop.run([1])
    before = copy.deepcopy(loop.model)
    assert_same_models(loop.run([BAD]).model, before)


def test_lr_find_leaves_what_is_kept_as_it_was():
    loop, never = Loop().run([0]), Loop().run([0])
    loop.optimizer.zero_grad()
    gradops.lr_find(loop.model, loop.optimizer, nn.functional.mse_loss, make_batches(2), num_steps=10)
    assert_same_models(loop.run([BAD]).model, never.model)


def test_a_recorder_does_not_disturb():
    loop = Loop()
    with gradops.Recorder(loop.optimizer, loop.model):
        loop.run(SEEN)
    assert_same_models(loop.model, Loop().run(UNSEEN).model)


def test_closures_run_before_the_decision():
    loop = Loop().run([0, 1])
    inputs, targets = make_batches()[BAD]

    def closure():
        loss = nn.functional.mse_loss(loop.model(inputs), targets)
        loss.backward()
        return loss

    loop.optimizer.step(closure)
    assert_same_models(loop.model, Loop().run([0, 1]).model)


def test_models_without_buffers_and_meta_buffers_are_no_trouble():
    model = nn.Linear(2, 2)
    model.register_buffer("shape_only", torch.zeros(3, device="meta"))
    model.register_buffer("empty", torch.zeros(0))
    for protect in (model, nn.Linear(1, 1), []):
        optimizer = gradops.AdamW(model.parameters(), protect=protect)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert int(optimizer.stats.steps_taken) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float8_e4m3fn, torch.uint8, torch.complex128])
def test_buffers_of_every_dtype_come_back(dtype):
    loop = Loop().run([0])
    loop.model.register_buffer("other", torch.tensor([1.0, 2.0]).to(dtype))
    loop.run([1])
    loop.model.other.copy_(torch.zeros(2).to(dtype))
    loop.run([BAD])
    assert_same_bits(loop.model.other, torch.tensor([1.0, 2.0]).to(dtype), "other")


def test_channels_last_and_strided_buffers_come_back():
    loop = Loop().run([0])
    values = torch.arange(48.0).reshape(2, 3, 2, 4).to(memory_format=torch.channels_last)
    loop.model.register_buffer("last", values.clone(memory_format=torch.preserve_format))
    loop.model.register_buffer("slice", torch.arange(10.0)[::2])
    loop.run([1])
    loop.model.last.zero_()
    loop.model.slice.zero_()
    loop.run([BAD])
    assert torch.equal(loop.model.last, values)
    assert torch.equal(loop.model.slice, torch.arange(10.0)[::2])


class Tape(TorchDispatchMode):
    """The operations of a block, to be run again on the same memory, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        for function, args, kwargs, out in self.operations:
            for before, now in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                if before is not None and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


def test_a_replayed_step_decides_anew_without_waiting():
    model = nn.BatchNorm1d(2, momentum=None)
    keeper, steps = protected(model), torch.zeros(2, dtype=torch.int64)
    counted = torch.tensor([1, 0])
    with Tape() as tape:
        before = steps.clone()
        model.num_batches_tracked.add_(1)
        model.running_mean.add_(1.0)
        steps.add_(counted)
        keeper.after_step(before, steps)
    assert torch.ops.aten._local_scalar_dense.default not in [operation[0] for operation in tape.operations]
    for verdict, expected in (((1, 0), 2), ((0, 1), 2), ((0, 1), 2), ((1, 0), 3), ((0, 0), 4), ((0, 1), 3)):
        counted.copy_(torch.tensor(verdict))
        tape.replay()
        assert int(model.num_batches_tracked) == expected
        assert model.running_mean.tolist() == [expected] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_step_puts_the_buffers_back():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).cuda()
    optimizer = gradops.AdamW(model.parameters(), lr=torch.tensor(1e-2, device="cuda"), protect=model)
    inputs = torch.randn(8, 2, 6, 6, device="cuda")

    def train():
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        train()
        train()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            train()
    torch.cuda.synchronize()
    graph.replay()
    before = {name: value.clone() for name, value in everything(model).items()}
    good = inputs.clone()
    inputs.fill_(math.nan)
    graph.replay()
    for name, value in everything(model).items():
        assert_same_bits(value, before[name], name)
    inputs.copy_(good)
    graph.replay()
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert finite(model)
