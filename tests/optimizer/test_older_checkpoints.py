"""Checkpoints that lack keys of ours, plain torch's and 0.1.0's, load for ever: what is absent is as at the start."""

import copy
import zipfile
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import gradops
from gradops.distributed import absent_keys
from gradops.one_pass.checkpoint import CHECKPOINT_KEYS

# Written by 0.1.0: four steps of a linear layer, the second with an inf.
RELEASED = Path(__file__).parent / "checkpoints-0.1.0.zip"
POLICY = gradops.DynamicLossScale(init_scale=16.0, growth_interval=2)
START = dict(zip(CHECKPOINT_KEYS, (16.0, 0, 0, 0, 1.0, 0.0, 0.0, 0), strict=False))
OF_RELEASED = {
    "gradops_loss_scale": 64.0,
    "gradops_growth_tracker": 0,
    "gradops_steps_taken": 3,
    "gradops_steps_skipped": 1,
    "gradops_lr_factor": 1.0,
    "gradops_usual_norm": 1.6639117002487183,
    "gradops_norm_deviation": 0.029147455468773842,
    "gradops_norms_seen": 3,
}


def build(wrapped=True, stepped=0):
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.1)
    if wrapped:
        gradops.wrap(optimizer, max_norm=1.0, guard=gradops.SpikeGuard(), loss_scale=POLICY)
    train(model, optimizer, stepped)
    return model, optimizer


def train(model, optimizer, steps):
    for _ in range(steps):
        loss = model(torch.ones(3, 2)).square().mean()
        (optimizer.backward if hasattr(optimizer, "backward") else torch.Tensor.backward)(loss)
        optimizer.step()
        optimizer.zero_grad()


def ours(optimizer):
    group = optimizer.state_dict()["param_groups"][0]
    return {key: group[key] for key in OF_RELEASED}


def moments(optimizer):
    return [tuple(float(value.sum()) for value in state.values()) for state in optimizer.state.values()]


def through_folder(saved, model, optimizer, options, folder):
    dcp.save({"optim": saved}, checkpoint_id=folder)
    return read(folder, model, optimizer, options)


def read(folder, model, optimizer, options):
    state = {"optim": get_optimizer_state_dict(model, optimizer, options=options)}
    dcp.load(state, checkpoint_id=folder)
    set_optimizer_state_dict(model, optimizer, state["optim"], options=options)


def in_memory(saved, model, optimizer, options, folder):
    set_optimizer_state_dict(model, optimizer, copy.deepcopy(saved), options=options)


@pytest.fixture
def released(tmp_path):
    with zipfile.ZipFile(RELEASED) as file:
        file.extractall(tmp_path)
    return tmp_path


@pytest.mark.parametrize("through", [through_folder, in_memory])
@pytest.mark.parametrize("flattened", [False, True])
@pytest.mark.parametrize("stepped", [0, 2], ids=["fresh", "stepped"])
def test_distributed_checkpoint_of_plain_adamw_loads(through, flattened, stepped, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    plain_model, plain = build(wrapped=False, stepped=3)
    model, optimizer = build(stepped=stepped)
    through(
        get_optimizer_state_dict(plain_model, plain, options=options), model, optimizer, options, tmp_path / "saved"
    )
    assert moments(optimizer) == moments(plain)
    assert ours(optimizer) == START


@pytest.mark.parametrize("through", [through_folder, in_memory])
@pytest.mark.parametrize("flattened", [False, True])
def test_distributed_checkpoint_of_ours_brings_all_its_keys(through, flattened, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flattened)
    model, first = build(stepped=3)
    other_model, other = build()
    through(get_optimizer_state_dict(model, first, options=options), other_model, other, options, tmp_path / "saved")
    assert ours(other) == ours(first) != START
    assert other.state_dict()["param_groups"][0]["gradops_last_step"] == 3


def test_saved_and_loaded_by_our_own_functions_across_the_wrap(tmp_path):
    plain_model, plain = build(wrapped=False, stepped=3)
    gradops.save_checkpoint(tmp_path, plain_model, plain)
    model, optimizer = build(stepped=1)
    gradops.load_checkpoint(tmp_path, model, optimizer)
    assert torch.equal(model.weight, plain_model.weight)
    assert moments(optimizer) == moments(plain)
    assert ours(optimizer) == START


@pytest.mark.parametrize("form", ["nested", "flat", "saved", "state.pt"])
def test_checkpoint_of_the_first_release_loads(form, released):
    model, optimizer = build()
    options = StateDictOptions(flatten_optimizer_state_dict=form == "flat")
    if form == "saved":
        gradops.load_checkpoint(released / form, model, optimizer)
    elif form == "state.pt":
        optimizer.load_state_dict(torch.load(released / form)["optimizer"])
    else:
        read(released / form, model, optimizer, options)
    assert ours(optimizer) == OF_RELEASED
    assert [int(state["step"]) for state in optimizer.state.values()] == [3, 3]


def test_key_that_is_added_later_locks_out_nobody(released, monkeypatch):
    """The released checkpoint stands for ours, and a key that this version does not have for one that the next adds."""
    model, optimizer = build()
    optimizer.param_groups[0]["gradops_of_the_next_version"] = 1.0
    for form, options in (
        ("nested", StateDictOptions()),
        ("flat", StateDictOptions(flatten_optimizer_state_dict=True)),
    ):
        read(released / form, model, optimizer, options)
        assert ours(optimizer) == OF_RELEASED


def test_keys_that_are_not_ours_are_demanded_as_before(tmp_path):
    model, optimizer = build(stepped=1)
    dcp.save({"optim": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=tmp_path)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    with pytest.raises(dcp.api.CheckpointException, match="initial_lr"):
        read(tmp_path, model, optimizer, StateDictOptions())


@pytest.mark.parametrize(
    ("key", "is_ours"),
    [("optim.param_groups.0.gradops_lr_factor", True), ("gradops_x", True), ("gradops.weight", False)],
)
def test_ours_are_known_by_the_last_part(key, is_ours):
    assert absent_keys.is_ours(key) == is_ours


def test_counters_go_on_through_plain_torch_and_back():
    _, optimizer = build(stepped=1)
    plain_model, plain = build(wrapped=False)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(plain_model, plain, 11)
    optimizer.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert [int(state["step"]) for state in optimizer.state.values()] == [12, 12]
    assert int(optimizer.stats.steps_taken) == 12
    gradops.wrap(plain)
    assert int(plain.stats.steps_taken) == 12
