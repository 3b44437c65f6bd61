"""`gradops.timm.dispatch_clip_grad` in timm's place: what the step does, and what timm's own does."""

import importlib

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("timm.task")

import timm.utils.clip_grad
from timm_loop import Loop

import gradops
import gradops.timm
from gradops import timm as gt
from gradops.optim.classes import classes
from gradops.timm import clip as module

# Of the length of a whole vector: an element of a small gradient goes as far as a large one where a rule divides by its
# size, and so shows how it was rounded.
CLOSE = 1e-2
# Each less than what the gradients are, so that it shows.
VALUES = {"norm": 0.2, "value": 0.003, "agc": 0.01}


@pytest.fixture
def in_step(monkeypatch):
    """From now on a clipping outside of the step fails."""

    def start():
        def fail(*_):
            raise AssertionError("the gradients were clipped outside the step")

        monkeypatch.setattr(module, "timms_dispatch", fail)

    return start


def same(*loops):
    for ours, theirs in zip(*(loop.moved() for loop in loops), strict=True):
        assert (ours - theirs).norm() <= CLOSE * theirs.norm()


PRECISIONS = {"float32": (None, False), "bfloat16": (torch.bfloat16, False), "float16": (torch.float16, True)}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", VALUES)
def test_clip_grad_is_done_by_the_step_in_every_precision_as_timm_does_it(mode, precision, in_step):
    amp, scaled = PRECISIONS[precision]
    theirs, ours = None, None
    if scaled:
        theirs, ours = gt.NativeScaler.__base__("cpu"), gt.NativeScaler("cpu", init_scale=64.0)
        theirs._scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    # Two steps: what rounding makes of the weights, float16 makes larger from forward to forward.
    clip = {"steps": 2, "clip": VALUES[mode], "mode": mode}
    expected, free = Loop("sgd", amp, theirs).run(**clip), Loop("sgd", amp).run(2)
    in_step()
    training = Loop("gradopssgd", amp, ours).run(**clip)
    same(training, expected)
    with pytest.raises(AssertionError):
        same(training, free)


@pytest.mark.parametrize(("name", "accumulate"), [*((name, 1) for name in classes()), ("AdamW", 3), ("SGD", 3)])
def test_adaptive_clipping_by_every_optimizer_spares_the_head_as_timm_does(name, accumulate, in_step):
    opt = name.lower()
    expected = Loop(opt).run(3, VALUES["agc"], "agc", accumulate)
    if opt != "lars":  # which needs the norm of the clipped gradient before its update
        in_step()
    same(Loop(f"gradops{opt}").run(3, VALUES["agc"], "agc", accumulate), expected)


def test_adaptive_clipping_of_all_parameters_reaches_the_head(in_step):
    results = []
    for opt in ("sgd", "gradopssgd"):
        loop = Loop(opt).backward()
        gt.dispatch_clip_grad(loop.model.parameters(), 0.01, mode="agc")
        loop.optimizer.step()
        results.append(loop)
    same(*results)
    with pytest.raises(AssertionError):
        same(results[0], Loop("sgd").run(1, 0.01, "agc"))


@pytest.mark.parametrize("mode", VALUES)
def test_clipping_holds_for_one_step_and_leaves_settings_groups_and_gradients(mode):
    loop = Loop().backward()
    groups, grads = loop.optimizer.param_groups, [param.grad.clone() for param in loop.model.parameters()]
    loop.clip(VALUES[mode], mode)
    loop.optimizer.step()
    assert all(torch.equal(param.grad, grad) for param, grad in zip(loop.model.parameters(), grads, strict=True))
    assert loop.optimizer.param_groups is groups
    assert len(groups) == 2
    assert (loop.optimizer.max_norm, loop.optimizer.clip_value, loop.optimizer.clip_mode) == (None, None, "norm")
    if mode != "value":
        assert loop.optimizer.stats.clip_coef.item() < 1
        loop.optimizer.step()
        assert loop.optimizer.stats.clip_coef.item() == 1


@pytest.mark.parametrize("mode", VALUES)
def test_clipping_is_dropped_with_its_gradients(mode):
    results = []
    for opt in ("sgd", "gradopssgd"):
        loop = Loop(opt).backward().clip(VALUES[mode], mode)
        loop.optimizer.zero_grad()
        loop.backward(1)
        loop.optimizer.step()
        results.append(loop)
    same(*results)


ORDERS = [("norm", "value"), ("value", "norm"), ("norm", "norm"), ("agc", "norm"), ("norm", "agc")]


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_several_clippings_before_one_step_are_done_in_their_order(order):
    results = []
    for opt in ("sgd", "gradopssgd"):
        loop = Loop(opt).backward()
        for factor, mode in zip((1.0, 0.5), order, strict=True):
            loop.clip(factor * VALUES[mode], mode)
        loop.optimizer.step()
        results.append(loop)
    same(*results)


@pytest.mark.parametrize("again", [False, True])
def test_gradients_changed_after_the_clipping_are_refused(again):
    loop = Loop().backward().clip(0.1)
    before = loop.weights()
    loop.backward(1)
    with pytest.raises(RuntimeError, match="after dispatch_clip_grad"):
        loop.clip(0.1) if again else loop.optimizer.step()
    assert all(torch.equal(now, was) for now, was in zip(loop.weights(), before, strict=True))


@pytest.mark.parametrize("mode", VALUES)
def test_closure_that_makes_the_gradients_anew_is_not_clipped(mode):
    results = []
    for opt in ("sgd", "gradopssgd"):
        loop = Loop(opt).backward().clip(VALUES[mode], mode)

        def closure(loop=loop):
            loop.optimizer.zero_grad()
            return loop.backward(1)

        loop.optimizer.step(closure)
        results.append(loop)
    same(*results)


def clipped_at_once(loop, parameters, *how):
    was = [param.grad.clone() for param in parameters]
    gt.dispatch_clip_grad(iter(parameters), *how)
    return not all(torch.equal(param.grad, grad) for param, grad in zip(parameters, was, strict=True))


def test_what_no_step_can_clip_is_clipped_at_once():
    loop = Loop().backward()
    params = list(loop.model.parameters())
    other = torch.nn.Parameter(torch.ones(3))
    other.grad = torch.ones(3)
    assert clipped_at_once(loop, params[:-2], 0.2)
    assert clipped_at_once(loop, [*params, other], 0.2)
    assert clipped_at_once(loop, params, 0.01, "agc", 1.0)
    assert clipped_at_once(loop, params, 0.0)
    assert not clipped_at_once(loop.backward(), params, 0.2)


def test_parameters_of_two_optimizers_are_clipped_at_once():
    loop = Loop().backward()
    second = gradops.SGD(loop.model.parameters(), lr=0.1)
    assert clipped_at_once(loop, list(loop.model.parameters()), 0.2)
    del second
    assert not clipped_at_once(loop.backward(), list(loop.model.parameters()), 0.2)


def native_with(loop, max_norm=None, clip_value=None):
    if clip_value is not None:
        torch.nn.utils.clip_grad_value_(loop.model.parameters(), clip_value)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(loop.model.parameters(), max_norm)
    loop.optimizer.step()
    return loop


@pytest.mark.parametrize("own", [{"max_norm": 0.1}, {"max_norm": 0.4}, {"clip_value": 0.002}, {"clip_value": 0.005}])
@pytest.mark.parametrize("mode", VALUES)
def test_the_optimizers_own_clipping_follows(mode, own):
    expected = native_with(Loop("sgd").backward().clip(VALUES[mode], mode), **own)
    loop = Loop(**own).backward().clip(VALUES[mode], mode)
    loop.optimizer.step()
    same(loop, expected)
    assert {name: getattr(loop.optimizer, name) for name in own} == own


def test_a_step_that_raises_leaves_settings_and_groups(monkeypatch):
    loop = Loop().backward().clip(0.01, "agc")
    groups = loop.optimizer.param_groups

    def fail():
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(loop.optimizer.engine, "prepare", fail)
        with pytest.raises(MemoryError):
            loop.optimizer.step()
    assert loop.optimizer.param_groups is groups
    assert (loop.optimizer.max_norm, loop.optimizer.clip_mode) == (None, "norm")


def test_recorded_layers_and_saved_states_are_the_same_whatever_is_spared():
    records = []
    for mode in ("norm", "agc"):
        loop = Loop()
        with gradops.Recorder(loop.optimizer, loop.model) as recorder:
            loop.run(2, VALUES[mode], mode)
            records.append(recorder.run())
        assert set(loop.optimizer.state_dict()["state"]) == set(range(len(loop.weights())))
    assert records[0].names == records[1].names
    assert [list(record.groups) for record in records] == [list(records[0].groups)] * 2
    torch.testing.assert_close(*(torch.from_numpy(record.norms[0]) for record in records))


def test_other_optimizers_are_clipped_by_timms_own():
    for mode, value in VALUES.items():
        ours, theirs = Loop("adamw").backward(), Loop("adamw").backward()
        gt.dispatch_clip_grad(ours.model.parameters(), value, mode)
        module.timms_dispatch(theirs.model.parameters(), value, mode)
        pairs = zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
        assert all(torch.equal(a.grad, b.grad) for a, b in pairs)


def test_importing_again_does_not_wrap_timms_function_twice():
    timms = module.timms_dispatch
    again = importlib.reload(module)
    try:
        again.install(gt.NativeScaler)
        assert again.timms_dispatch is timms
        assert timms.__module__ == "timm.utils.clip_grad"
        assert timms is not gt.dispatch_clip_grad
    finally:
        importlib.reload(module).install(gt.NativeScaler)
    assert timm.utils.dispatch_clip_grad is timm.utils.cuda.dispatch_clip_grad is module.dispatch_clip_grad
