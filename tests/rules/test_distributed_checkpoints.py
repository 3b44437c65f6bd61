"""Distributed checkpoints of torch's classes and of ours, for every rule, in both of torch's forms."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import gradops
from rules import TORCHS

# Beside the constructor's defaults: what makes a state have all its moments.
OPTIONS = {torch.optim.RMSprop: {"momentum": 0.9, "centered": True}, torch.optim.SGD: {"momentum": 0.9}}


def trained(cls, steps, seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    options = next((OPTIONS[base] for base in cls.__mro__ if base in OPTIONS), {})
    optimizer = cls(model.named_parameters(), lr=0.1, **options)
    for _ in range(steps):
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def go_on(model, optimizer):
    for _ in range(2):
        model(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize("stepped", [0, 2], ids=["fresh", "stepped"])
@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("to_ours", [False, True])
@pytest.mark.parametrize("torchs", TORCHS)
def test_a_distributed_checkpoint_crosses_between_torchs_class_and_ours(
    torchs, to_ours, on_disk, flattened, stepped, tmp_path
):
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    kinds = (torchs, TORCHS[torchs]) if to_ours else (TORCHS[torchs], torchs)
    (model, first), (other_model, other) = trained(kinds[0], 3), trained(kinds[1], stepped, seed=1)
    other_model.load_state_dict(model.state_dict())
    saved = copy.deepcopy(get_optimizer_state_dict(model, first, options=options))
    if on_disk:
        dcp.save({"optim": saved}, checkpoint_id=tmp_path)
        saved = get_optimizer_state_dict(other_model, other, options=options)
        state = {"optim": saved}
        dcp.load(state, checkpoint_id=tmp_path)
        saved = state["optim"]
    set_optimizer_state_dict(other_model, other, saved, options=options)
    torch.testing.assert_close(go_on(other_model, other), go_on(model, first), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("torchs", TORCHS)
def test_saved_and_loaded_by_our_own_functions(torchs, tmp_path):
    model, theirs = trained(torchs, 3)
    gradops.save_checkpoint(tmp_path, model, theirs)
    other_model, ours = trained(TORCHS[torchs], 1, seed=1)
    gradops.load_checkpoint(tmp_path, other_model, ours)
    torch.testing.assert_close(go_on(other_model, ours), go_on(model, theirs), rtol=1e-5, atol=1e-6)


def test_a_state_without_the_step_that_torchs_has_is_refused():
    _, optimizer = trained(gradops.AdamW, 2)
    state = optimizer.state_dict()
    state["state"][0] = {**state["state"][0], "step": None}
    with pytest.raises(ValueError, match="no Adam's: its parameter 0 has no step"):
        optimizer.load_state_dict(state)
