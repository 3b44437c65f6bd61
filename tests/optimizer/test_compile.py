"""torch.compile around a wrapped optimizer breaks the graph no more often than around plain AdamW."""

import subprocess
import sys

import pytest
import torch
from quick import slow_but
from rules import CLASSES, table_of, torchs
from torch._dynamo.utils import counters

import gradops


def forward_backward(model, optimizer, x):
    loss = model(x).square().mean()
    loss.backward()
    return loss


def scaled_backward(model, optimizer, x):
    loss = model(x).square().mean()
    optimizer.backward(loss) if isinstance(optimizer, gradops.AdamW) else loss.backward()
    return loss


def whole_step(model, optimizer, x):
    loss = forward_backward(model, optimizer, x)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def train(function, optimizer_cls, compiled, lr=0.1, **settings):
    """Breaks of the graph while training, and what was trained."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = optimizer_cls(model.parameters(), lr=lr, **settings)

    def step(x):
        return function(model, optimizer, x)

    step = torch.compile(step, backend="aot_eager") if compiled else step
    for _ in range(4):
        step(torch.randn(3, 4))
        if function is not whole_step:
            optimizer.step()
            optimizer.zero_grad()
    return sum(counters["graph_break"].values()), model, optimizer


@pytest.mark.filterwarnings("ignore:Dynamo")
@pytest.mark.parametrize("function", [forward_backward, scaled_backward, whole_step])
def test_no_graph_break_that_plain_adamw_does_not_have(function):
    settings = {"max_norm": 0.1, "loss_scale": "dynamic"} if function is scaled_backward else {"max_norm": 0.1}
    plain, _, _ = train(function, torch.optim.AdamW, compiled=True)
    ours, model, optimizer = train(function, gradops.AdamW, compiled=True, **settings)
    assert ours <= plain, dict(counters["graph_break"])
    _, eager, _ = train(function, gradops.AdamW, compiled=False, **settings)
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert int(optimizer.stats.steps_taken) == 4


@pytest.mark.filterwarnings("ignore:Dynamo")
@pytest.mark.parametrize("name", slow_but(["SGD"], [cls.__name__ for cls in CLASSES]))
def test_no_rules_compiled_step_breaks_more_graphs_than_torchs(name):
    """Its own class, or Adam's where torch has none; averages of the weights change nothing."""
    cls = getattr(gradops, name)
    plain, _, _ = train(whole_step, torchs(cls) or torch.optim.Adam, compiled=True)
    settings = {**[*table_of(cls).options.values()][-1], "max_norm": 0.1, "ema": gradops.WeightEma(0.5)}
    ours, model, optimizer = train(whole_step, cls, compiled=True, **settings)
    assert ours <= plain, dict(counters["graph_break"])
    _, eager, expected = train(whole_step, cls, compiled=False, **settings)
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
        torch.testing.assert_close(optimizer.state[mine]["ema"], expected.state[theirs]["ema"])
    assert int(optimizer.stats.steps_taken) == 4


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_scale_in_compiled_code_is_remembered_by_the_step():
    def scaled(model, optimizer, x):
        optimizer.scale(model(x).square().mean()).backward()

    _, model, optimizer = train(scaled, gradops.AdamW, compiled=True, loss_scale=256.0)
    _, eager, _ = train(scaled, gradops.AdamW, compiled=False, loss_scale=256.0)
    for mine, theirs in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert float(optimizer.stats.loss_scale) == 256.0


def test_an_optimizer_of_the_functional_operators_compiles_as_one_graph():
    """Every operator of a step, scaled and clipped, between two updates of the loss scale."""
    ops = torch.ops.gradops

    def step(params, grads, exp_avgs, exp_avg_sqs, steps, lr, scale, tracker):
        grad_norm, _, _, nonfinite = ops.grad_stats(grads, scale)
        found_inf = (nonfinite.sum() > 0).float()
        coef = torch.clamp(1.0 / (grad_norm + 1e-6), max=1.0)
        ops.adam_step_(params, grads, exp_avgs, exp_avg_sqs, [], steps, lr, grad_scale=scale, clip_coef=coef,
                       found_inf=found_inf)  # fmt: skip
        ops.update_loss_scale_(scale, tracker, found_inf, growth_interval=1)
        found_before = ops.unscale_(grads, scale)
        return grad_norm, found_before, ops.clip_grad_norm_(grads, 0.5)

    def arguments():
        torch.manual_seed(0)
        lists = [[torch.randn(shape) for shape in ((5,), (3, 3))] for _ in range(2)]
        moments = [[torch.zeros(shape) for shape in ((5,), (3, 3))] for _ in range(2)]
        steps, scalars = [torch.zeros(()), torch.zeros(())], (torch.tensor(0.1), torch.tensor(8.0), torch.tensor(0))
        return (*lists, *moments, steps, *scalars)

    mine, eager = arguments(), arguments()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*mine), step(*eager))
    torch.testing.assert_close(mine, eager)


def test_importing_gradops_loads_neither_the_compiler_nor_the_sharded_tensors():
    """They take seconds, and most who import gradops need neither."""
    program = (
        "import sys, torch; before = set(sys.modules); import gradops; "
        "print([name for name in set(sys.modules) - before if name.startswith('torch.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for heavy in (
        "torch._dynamo",
        "torch.distributed.tensor",
        "torch.distributed.fsdp",
        "torch.distributed.checkpoint",
    ):
        assert f"'{heavy}'" not in done.stdout
