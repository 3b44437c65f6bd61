"""`ema_weights` and `ema_model`: what evaluates with the averages, and that the training does not see it."""

import pytest
import torch
from averaged_task import assert_same, averages, copies, make, train, train_step
from beside import assert_same_bits
from torch import nn

import gradops


def test_the_block_evaluates_with_the_averages_and_gives_the_weights_back(device):
    model, optimizer = make(device)
    train(model, optimizer, 5)
    weights = copies(model.parameters())
    kept = copies(averages(model, optimizer))
    versions = [param._version for param in model.parameters()]
    addresses = [param.data_ptr() for param in model.parameters()]
    with gradops.ema_weights(model, optimizer):
        assert_same(model.parameters(), kept)
        assert all(param._version > version for param, version in zip(model.parameters(), versions, strict=True))
    assert [param.data_ptr() for param in model.parameters()] == addresses
    assert_same(model.parameters(), weights)
    assert_same(averages(model, optimizer), kept)


@pytest.mark.parametrize("settings", [{}, {"max_relative_step": 0.01}, {"master_weights": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_evaluates_with_the_averages_is_the_run_that_does_not(settings, dtype, device):
    runs = []
    for evaluates in (False, True):
        model, optimizer = make(device, dtype, **settings)
        for step in range(6):
            train_step(model, optimizer, step)
            if evaluates:
                with gradops.ema_weights(model, optimizer), torch.no_grad():
                    model.eval()(torch.ones(2, 7, device=device, dtype=dtype))
                model.train()
        runs.append([*model.parameters(), *averages(model, optimizer)])
    assert_same(*runs)


def test_half_precision_parameters_are_the_rounded_averages():
    model, optimizer = make(dtype=torch.bfloat16)
    train(model, optimizer, 3)
    weights = copies(model.parameters())
    kept = copies(averages(model, optimizer))
    with gradops.ema_weights(model, optimizer):
        assert_same(model.parameters(), [average.bfloat16() for average in kept])
    assert_same(model.parameters(), weights)
    assert_same(averages(model, optimizer), kept)


def test_an_error_in_the_block_gives_the_weights_back():
    model, optimizer = make()
    train(model, optimizer, 2)
    weights = copies(model.parameters())
    with pytest.raises(KeyError), gradops.ema_weights(model, optimizer):
        raise KeyError
    assert_same(model.parameters(), weights)
    train(model, optimizer, 1)


def test_what_the_block_refuses():
    model, optimizer = make()
    train(model, optimizer, 2)
    state_dict = optimizer.state_dict()
    with gradops.ema_weights(model, optimizer):
        inside = copies(model.parameters())
        with pytest.raises(RuntimeError, match=r"^gradops.ema_weights inside gradops.ema_weights"):
            gradops.ema_weights(model, optimizer).__enter__()
        for what in (
            optimizer.step,
            optimizer.state_dict,
            lambda: optimizer.load_state_dict(state_dict),
            lambda: gradops.ema_model(model, optimizer),
        ):
            with pytest.raises(RuntimeError, match=r"inside gradops.ema_weights"):
                what()
        assert_same(model.parameters(), inside)
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"ema_weights takes an optimizer of gradops"):
        gradops.ema_weights(model, other).__enter__()
    with pytest.raises(ValueError, match=r"averages no weights; give it ema=gradops.WeightEma"):
        gradops.ema_model(model, gradops.wrap(other))
    with pytest.raises(ValueError, match=r"none of the model's parameters"):
        gradops.ema_model(nn.Linear(2, 2), optimizer)


def test_parameters_without_an_average_stay():
    model, optimizer = make()
    model[3].requires_grad_(False)
    before = copies(model.parameters())
    with gradops.ema_weights(model, optimizer):
        assert_same(model.parameters(), before)
    train(model, optimizer, 2)
    with gradops.ema_weights(model, optimizer):
        assert_same_bits(model[3].weight.detach(), before[4])
        assert not torch.equal(model[0].weight, before[0])
    assert_same_bits(gradops.ema_model(model, optimizer)[3].weight, before[4])


def test_the_model_of_the_averages_is_its_own():
    model, optimizer = make()
    train(model, optimizer, 3)
    compiled = torch.compile(model, backend="eager")
    made = gradops.ema_model(compiled, optimizer)
    assert type(made) is nn.Sequential
    assert list(made.state_dict()) == list(model.state_dict())
    assert not made.training
    assert not any(param.requires_grad for param in made.parameters())
    kept = averages(model, optimizer)
    assert_same(made.parameters(), kept)
    assert {param.data_ptr() for param in made.parameters()}.isdisjoint(average.data_ptr() for average in kept)
    assert model.training
    assert model[0].weight.requires_grad
