"""What checkpoints have of the averages, and what begins anew where they have none."""

import copy
import pickle

import pytest
import torch
from averaged_task import assert_near, assert_same, averages, copies, make, train, train_step

import gradops


@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle", "folder"])
def test_a_resumed_run_is_the_same_run(way, device, tmp_path):
    def begin():
        model, optimizer = make(device, max_norm=1.0)
        optimizer.ema = gradops.WeightEma(0.9, inv_gamma=1.0, every=2, buffers=model)
        return model, optimizer

    model, optimizer = begin()
    train(model, optimizer, 5)
    again, resumed = begin()
    if way == "state_dict":
        again.load_state_dict(copy.deepcopy(model.state_dict()))
        torch.save(optimizer.state_dict(), tmp_path / "file")
        resumed.load_state_dict(torch.load(tmp_path / "file"))
    elif way == "deepcopy":
        again, resumed = copy.deepcopy((model, optimizer))
    elif way == "pickle":
        again, resumed = pickle.loads(pickle.dumps((model, optimizer)))
    else:
        gradops.save_checkpoint(tmp_path / "folder", model, optimizer)
        gradops.load_checkpoint(tmp_path / "folder", again, resumed)
    for run in ((model, optimizer), (again, resumed)):
        train(*run, 5, first=5)
    assert_same(averages(model, optimizer), averages(again, resumed))
    assert_same(gradops.ema_model(model, optimizer).buffers(), gradops.ema_model(again, resumed).buffers())


def test_without_an_average_in_the_checkpoint_it_begins_as_the_parameters_are_then(device, tmp_path):
    model, optimizer = make(device)
    train(model, optimizer, 3)
    state_dict = copy.deepcopy(optimizer.state_dict())
    for state in state_dict["state"].values():
        del state["ema"]
    weights = copies(model.parameters())
    optimizer.load_state_dict(state_dict)
    train_step(model, optimizer, 3)
    expected = [0.9 * old + 0.1 * new.detach() for old, new in zip(weights, model.parameters(), strict=True)]
    assert_near(averages(model, optimizer), expected)

    plain, without = make(device)
    without.ema = None
    train(plain, without, 3)
    gradops.save_checkpoint(tmp_path / "folder", plain, without)
    gradops.load_checkpoint(tmp_path / "folder", model, optimizer)
    train_step(model, optimizer, 3)
    assert_near(averages(model, optimizer), expected)


def test_plain_torch_takes_the_checkpoint_and_unwrap_drops_the_average(device):
    model, optimizer = make(device)
    optimizer.ema = gradops.WeightEma(0.9, buffers=model)
    train(model, optimizer, 3)
    plain = torch.optim.AdamW(model.parameters())
    plain.load_state_dict(optimizer.state_dict())
    train_step(model, plain, 3)
    gradops.unwrap(optimizer)
    assert not any(key.startswith("ema") for state in optimizer.state.values() for key in state)
    train_step(model, optimizer, 4)
