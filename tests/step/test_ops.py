"""The operators of torch.ops.gradops: opcheck, fake kernels, torch.compile, and the same numbers as the optimizer's."""

import math
from itertools import chain

import pytest
import torch
from quick import slow_but
from rules import CLASSES, reference_of, table_of
from torch.library import opcheck

import gradops
from gradops import reference
from gradops.reference.rules import adam
from gradops.reference.update import ParamState, update_param

ops = torch.ops.gradops


def tensors(*shapes, dtype=torch.float32):
    torch.manual_seed(0)
    return [torch.randn(shape).to(dtype) for shape in shapes]


SHAPES = [(3, 4), (17,), (), (0,), (8193,)]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf, 3.0])
@pytest.mark.parametrize("scale", [None, 8.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grad_stats(dtype, scale, norm_type):
    grads, grad_scale = tensors(*SHAPES, dtype=dtype), None if scale is None else torch.tensor(scale)
    opcheck(ops.grad_stats, (grads, grad_scale, 0.5, norm_type))
    grad_norm, norms, abs_max, nonfinite = ops.grad_stats(grads, grad_scale, 0.5, norm_type)
    expected = reference.grad_stats(grads, scale or 1.0, 0.5, norm_type)
    assert grad_norm.item() == pytest.approx(expected.grad_norm, rel=1e-5)
    assert norms.tolist() == pytest.approx(expected.norms, rel=1e-5)
    assert abs_max.tolist() == expected.abs_max
    assert nonfinite.tolist() == expected.nonfinite


def adam_arguments(amsgrad=False, decoupled=True, dtype=torch.float32):
    params, grads = tensors(*SHAPES, dtype=dtype), tensors(*SHAPES)
    moments = [[torch.zeros(shape) for shape in SHAPES] for _ in range(3)]
    steps = [torch.tensor(2.0) for _ in SHAPES]
    args = (params, grads, moments[0], moments[1], moments[2] if amsgrad else [], steps, torch.tensor(0.1))
    return args, {"beta1": 0.8, "beta2": 0.95, "weight_decay": 0.2, "decoupled": decoupled}


@pytest.mark.parametrize("found_inf", [None, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_step(decoupled, amsgrad, found_inf):
    args, options = adam_arguments(amsgrad, decoupled)
    options |= {"grad_scale": torch.tensor(4.0), "clip_coef": torch.tensor(0.25), "clip_value": 0.1}
    options |= {"found_inf": None if found_inf is None else torch.tensor(found_inf)}
    opcheck(ops.adam_step_, args, options)
    group = {"betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.2, "amsgrad": amsgrad, "maximize": False}
    expected = []
    for row, param in enumerate(args[0]):
        weight = param.clone()
        state = ParamState({name: torch.zeros_like(param) for name in adam.MOMENTS}, step=2)
        grad = reference.clip(reference.unscale(args[1][row], 0.25), 0.1, 0.25)
        if not found_inf:
            update_param(adam, weight, grad, state, {**group, "decoupled_weight_decay": decoupled}, 0.1)
        expected.append((weight, state))
    ops.adam_step_(*args, **options)
    for row, (weight, state) in enumerate(expected):
        torch.testing.assert_close(args[0][row], weight, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(args[2][row], state["exp_avg"], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(args[3][row], state["exp_avg_sq"], rtol=1e-6, atol=1e-10)
        assert args[5][row].item() == state.step


def test_adam_step_of_half_precision_params_with_float32_gradients():
    args, options = adam_arguments(dtype=torch.bfloat16)
    opcheck(ops.adam_step_, args, options)


def update_arguments(amsgrad=False, dtype=torch.float32):
    """What `_update_` takes for the same as `adam_step_` with `adam_arguments`."""
    (params, grads, *moments, steps, lr), options = adam_arguments(amsgrad, dtype=dtype)
    options["hyper"] = [options.pop("beta1"), options.pop("beta2"), 1e-8, float(amsgrad)]
    return ("adam", params, grads, list(chain(*moments)), steps, [], lr), options


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_update_by_name_is_the_same_update(amsgrad, dtype):
    named, by_name = adam_arguments(amsgrad, dtype=dtype), update_arguments(amsgrad, dtype)
    shared = {"clip_coef": torch.tensor(0.25), "l1": 0.01, "maximize": True}
    opcheck(ops._update_, by_name[0], by_name[1] | shared)
    ops.adam_step_(*named[0], **named[1], **shared)
    ops._update_(*by_name[0], **by_name[1], **shared)
    torch.testing.assert_close(by_name[0][1], named[0][0], rtol=2e-6 if dtype == torch.float32 else 2**-7, atol=1e-6)
    torch.testing.assert_close(by_name[0][3], list(chain(*named[0][2:5])), rtol=4e-6, atol=1e-8)
    assert [step.item() for step in by_name[0][4]] == [3.0] * len(SHAPES)


# Of gradients themselves; what they are of squares is larger than their squares here.
AVERAGES = ("exp_avg", "grad_avg", "momentum_buffer")


def rule_arguments(cls):
    """What `_update_` takes of a rule with the last of its options and states in mid-run, and the oracle's twins."""
    rule = cls.rule
    group = cls([torch.ones(2)], **[*table_of(cls).options.values()][-1]).param_groups[0]
    params, names = tensors(*SHAPES), rule.moments_of(group)
    grads = [torch.randn(shape) for shape in SHAPES]
    states = [
        ParamState({name: torch.rand(shape) + (name not in AVERAGES) for name in names}, step=2) for shape in SHAPES
    ]
    moments = [[state[name].clone() for state in states] for name in names]
    scalars = [torch.tensor(0.7) for _ in SHAPES for _ in rule.scalars]
    for state in states:
        state.moments.update({scalar.name: torch.tensor(0.7) for scalar in rule.scalars})
    steps, lr = [torch.tensor(2.0) for _ in SHAPES], torch.tensor(0.01, dtype=torch.float64)
    options = {"hyper": rule.hyper_of(group), "weight_decay": group["weight_decay"], "maximize": group["maximize"]}
    options |= {"decoupled": rule.decouples(group), "clip_coef": torch.tensor(0.25)}
    if rule.needs_norms:
        options["grad_factors"] = torch.full((len(SHAPES),), 0.5, dtype=torch.float64)
    return (rule.name, params, grads, list(chain(*moments)), steps, scalars, lr), options, (group, names, states)


@pytest.mark.parametrize("name", slow_but(["SGD", "NAdam", "LARS"], [cls.__name__ for cls in CLASSES]))
def test_every_rules_operator_is_one_to_torch(name):
    args, options, _ = rule_arguments(getattr(gradops, name))
    opcheck(ops._update_, args, options)


@pytest.mark.parametrize("found_inf", [0.0, 1.0])
@pytest.mark.parametrize("cls", CLASSES)
def test_update_by_every_rule_is_the_oracles(cls, found_inf):
    args, options, (group, names, states) = rule_arguments(cls)
    _, params, grads, moments, steps, scalars, lr = args
    expected = [param.clone() for param in params]
    for weight, grad, state in zip(expected, grads, states, strict=True) if not found_inf else ():
        factor = 0.5 if cls.rule.needs_norms else 1.0
        update_param(reference_of(cls), weight, grad * 0.25, state, group, float(lr), factor=factor)
    ops._update_(*args, **options, found_inf=torch.tensor(found_inf))
    torch.testing.assert_close(params, expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(moments, [state[name] for name in names for state in states], rtol=4e-6, atol=1e-6)
    for scalar in cls.rule.scalars:
        torch.testing.assert_close(scalars, [state[scalar.name] for state in states])
    assert [step.item() for step in steps] == [state.step for state in states] == [3.0 - found_inf] * len(SHAPES)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9, math.inf])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf, 3.0])
def test_clip_grad_norm(norm_type, max_norm):
    grads = tensors(*SHAPES)
    opcheck(ops.clip_grad_norm_, (tensors(*SHAPES), max_norm, norm_type))
    expected = reference.grad_stats(grads, norm_type=norm_type)
    kept, coef = [grad.clone() for grad in grads], reference.decide(expected, max_norm=max_norm).clip_coef
    assert ops.clip_grad_norm_(grads, max_norm, norm_type).item() == pytest.approx(expected.grad_norm, rel=1e-5)
    torch.testing.assert_close(grads, [grad * coef for grad in kept], rtol=2e-6, atol=0)


@pytest.mark.parametrize("poison", [0.0, math.inf, math.nan])
def test_unscale(poison):
    grads, scale = tensors(*SHAPES), torch.tensor(3.0)
    opcheck(ops.unscale_, (tensors(*SHAPES), scale))
    grads[1][4] += poison
    kept = [grad * torch.tensor(1 / 3, dtype=torch.float32) for grad in grads]
    assert ops.unscale_(grads, scale).item() == float(poison != 0.0)
    torch.testing.assert_close(grads, kept, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("found_inf", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("tracker", [0, 4])
def test_update_loss_scale(tracker, found_inf):
    policy = gradops.DynamicLossScale(init_scale=8.0, growth_factor=3.0, backoff_factor=0.25, growth_interval=5)
    options = {"growth_factor": 3.0, "backoff_factor": 0.25, "growth_interval": 5}
    scale, growth_tracker = torch.tensor(8.0), torch.tensor(tracker)
    opcheck(ops.update_loss_scale_, (scale.clone(), growth_tracker.clone(), torch.tensor(found_inf)), options)
    ops.update_loss_scale_(scale, growth_tracker, torch.tensor(found_inf), **options)
    expected = reference.update_loss_scale(8.0, tracker, found_inf != 0, policy)
    assert (scale.item(), growth_tracker.item()) == expected


def test_every_operator_is_tested_here():
    names = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("gradops::")
    }
    assert names - {"activation_stats"} == {
        "grad_stats",
        "_update_",
        "adam_step_",
        "clip_grad_norm_",
        "unscale_",
        "update_loss_scale_",
    }


def test_versions_of_what_was_written_are_bumped():
    args, options = adam_arguments()
    before = [tensor._version for tensor in args[0] + args[2] + args[3] + args[5]]
    ops.adam_step_(*args, **options)
    after = [tensor._version for tensor in args[0] + args[2] + args[3] + args[5]]
    assert all(new > old for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.grad_stats([torch.ones(3)], None, None, -1.0), "norm_type"),
        (lambda: ops.clip_grad_norm_([torch.ones(3)], -1.0, 2.0), "max_norm"),
        (lambda: ops.clip_grad_norm_([torch.ones(3)], math.nan, 2.0), "max_norm"),
        (lambda: ops.grad_stats([torch.ones(3, dtype=torch.float64)], None, None, 2.0), "Double|float64"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


def test_lists_that_do_not_match_are_refused():
    args, options = adam_arguments()
    for position, broken in (
        (1, args[1][:-1]),
        (2, args[3][:-1]),
        (5, args[5][:-1]),
        (1, [torch.ones(7), *args[1][1:]]),
    ):
        wrong = [*args[:position], broken, *args[position + 1 :]]
        kept = [param.clone() for param in args[0]]
        with pytest.raises((ValueError, RuntimeError)):
            ops.adam_step_(*wrong, **options)
        assert all(torch.equal(param, before) for param, before in zip(args[0], kept, strict=True))


def test_update_refuses_lists_that_do_not_match():
    (rule, params, grads, moments, steps, scalars, lr), options = update_arguments()
    kept = [param.clone() for param in params]
    for wrong in (
        (rule, params, grads[:-1], moments, steps, scalars, lr),
        (rule, params, grads, moments[:-1], steps, scalars, lr),
        (rule, params, grads, [torch.ones(7), *moments[1:]], steps, scalars, lr),
        (rule, params, grads, moments, steps[:-1], scalars, lr),
        (rule, params, grads, moments, steps, steps, lr),
        ("nadam", params, grads, moments, steps, scalars, lr),
        ("nadam", params, grads, moments, steps, [step.double() for step in steps], lr),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            ops._update_(*wrong, **options)
    assert all(torch.equal(param, before) for param, before in zip(params, kept, strict=True))


def test_fake_tensors_give_shapes_without_running():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        grads = [torch.empty(3), torch.empty(4, 5)]
        grad_norm, norms, abs_max, nonfinite = ops.grad_stats(grads, None, None, 2.0)
    assert (grad_norm.shape, norms.shape, abs_max.shape, nonfinite.shape) == ((), (2,), (2,), (2,))
    assert nonfinite.dtype == torch.int64


def test_compiled_function_calls_the_operators():
    def clip(grads):
        stats = ops.grad_stats(grads, None, None, 2.0)
        return stats[0] * 2, ops.clip_grad_norm_(grads, 1.0, 2.0)

    eager, compiled = tensors((5,), (3, 3)), tensors((5,), (3, 3))
    torch.testing.assert_close(torch.compile(clip, fullgraph=True, backend="aot_eager")(compiled), clip(eager))
    torch.testing.assert_close(compiled, eager)


def test_users_own_optimizer_from_the_operators_equals_ours():
    """grad_stats, then a clip coefficient, then adam_step_: the bits of `gradops.AdamW`."""
    param, grad = tensors((8193,), (8193,))
    mine = param.clone().requires_grad_()
    mine.grad = grad.clone()
    gradops.AdamW([mine], lr=0.1, max_norm=1.0).step()
    grad_norm = ops.grad_stats([grad], None, None, 2.0)[0]
    clip_coef = torch.clamp(1.0 / (grad_norm.double() + 1e-6), max=1.0).float()
    state = [[torch.zeros_like(param)] for _ in range(2)]
    ops.adam_step_([param], [grad], *state, [], [torch.tensor(0.0)], torch.tensor(0.1, dtype=torch.float64),
                   clip_coef=clip_coef, weight_decay=0.01, decoupled=True)  # fmt: skip
    torch.testing.assert_close(param, mine.detach(), rtol=1e-6, atol=1e-7)
