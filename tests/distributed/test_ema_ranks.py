"""The average of the weights under DDP and FSDP2 is that of one process; it evaluates there, and is saved."""

import math

import pytest
import torch
from beside import assert_same_bits
from layouts import full
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradops

EMA = gradops.WeightEma(0.8, inv_gamma=1.0, start=1)


def build(kind, world):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))
    if kind == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    return model, gradops.AdamW(model.named_parameters(), lr=1e-2, max_norm=0.5, ema=EMA)


def train(model, optimizer, first, last):
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(4, 6, generator=generator)
        loss = model(inputs).square().mean() * (math.nan if step == 1 else 1.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def run(kind, world):
    """Averages after 5 steps; outputs with them; and with the model's own weights after a step that follows."""
    model, optimizer = build(kind, world)
    train(model, optimizer, 0, 5)
    averages = [full(optimizer.state[param]["ema"]).clone() for param in model.parameters()]
    inputs = torch.ones(2, 6)
    with torch.no_grad():
        own = model(inputs).clone()
        with gradops.ema_weights(model, optimizer):
            averaged = model(inputs).clone()
        back = model(inputs).clone()
    train(model, optimizer, 5, 6)
    params = [full(param.detach()).clone() for param in optimizer.param_groups[0]["params"]]
    return averages, own, averaged, back, params


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_averages_of_ranks_are_those_of_one_process(workers, kind):
    alone, _, output, _, params = run(None, 1)
    for averages, own, averaged, back, trained in workers.run(2, run, kind, 2):
        for one, other in zip([*averages, averaged, *trained], [*alone, output, *params], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert_same_bits(own, back)
        assert not torch.equal(own, averaged)


def resume(world, path, load):
    model, optimizer = build("fsdp", world)
    if load:
        gradops.load_checkpoint(path, model, optimizer)
    else:
        train(model, optimizer, 0, 3)
        gradops.save_checkpoint(path, model, optimizer)
    train(model, optimizer, 3, 5)
    return [full(optimizer.state[param]["ema"]).clone() for param in optimizer.param_groups[0]["params"]]


def test_a_saved_average_goes_on(workers, tmp_path):
    saved = workers.run(2, resume, 2, tmp_path, False)
    loaded = workers.run(2, resume, 2, tmp_path, True)
    for one, other in zip(saved[0], loaded[0], strict=True):
        assert_same_bits(one, other)


def refused(world):
    model, optimizer = build("fsdp", world)
    train(model, optimizer, 0, 1)
    with pytest.raises(TypeError, match=r"ema_model cannot copy a model that fully_shard has prepared"):
        gradops.ema_model(model, optimizer)
    wrapped, of_ddp = build("ddp", world)
    train(wrapped, of_ddp, 0, 1)
    return list(gradops.ema_model(wrapped, of_ddp).state_dict())


def test_a_model_is_made_of_what_is_inside_ddp(workers):
    assert workers.run(2, refused, 2)[0] == ["0.weight", "0.bias", "2.weight", "2.bias"]
