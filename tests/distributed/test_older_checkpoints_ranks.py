"""Distributed checkpoints of plain AdamW load into a wrapped optimizer on two processes."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from layouts import full
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradops


def build(wrapped):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    return model, gradops.wrap(optimizer, loss_scale="dynamic") if wrapped else optimizer


def reloaded(path, flattened, own_functions):
    plain_model, plain = build(wrapped=False)
    for _ in range(3):
        plain_model(torch.ones(2, 6)).square().mean().backward()
        plain.step()
        plain.zero_grad()
    model, optimizer = build(wrapped=True)
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    if own_functions:
        gradops.save_checkpoint(path, plain_model, plain)
        gradops.load_checkpoint(path, model, optimizer)
    else:
        dcp.save({"optim": get_optimizer_state_dict(plain_model, plain, options=options)}, checkpoint_id=path)
        state = {"optim": get_optimizer_state_dict(model, optimizer, options=options)}
        dcp.load(state, checkpoint_id=path)
        set_optimizer_state_dict(model, optimizer, state["optim"], options=options)
    both = [[full(state["exp_avg"]).clone() for state in one.state.values()] for one in (plain, optimizer)]
    return *both, optimizer.state_dict()["param_groups"][0]["gradops_loss_scale"]


@pytest.mark.parametrize(("flattened", "own_functions"), [(False, False), (True, False), (False, True)])
def test_plain_checkpoint_loads(workers, tmp_path, flattened, own_functions):
    for plain, loaded, scale in workers.run(2, reloaded, tmp_path / "saved", flattened, own_functions):
        assert scale == 2.0**16
        assert all(torch.equal(one, two) for one, two in zip(plain, loaded, strict=True))
