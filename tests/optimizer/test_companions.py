"""What runs beside an optimizer: averages of the weights, hooks, copies, profilers."""

import copy
import pickle

import pytest
import torch
from beside import assert_same_bits
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import gradops


def trained(model, optimizer, steps=4, averaged=None, scheduler=None):
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 4), 1.0 + step)).square().mean().backward()
        optimizer.step()
        averaged.update_parameters(model) if averaged else None
        scheduler.step() if scheduler else None
    return model


def make(cls=gradops.AdamW, **settings):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    return model, cls(model.parameters(), lr=0.05, **settings)


@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
def test_averages_of_the_weights_are_those_beside_plain_torch(average):
    averages = []
    for cls in (torch.optim.AdamW, gradops.AdamW):
        model, optimizer = make(cls)
        averaged = AveragedModel(model, multi_avg_fn=average)
        trained(model, optimizer, averaged=averaged, scheduler=SWALR(optimizer, swa_lr=0.01, anneal_epochs=2))
        averages.append(averaged.module)
    torch.testing.assert_close(averages[1].weight, averages[0].weight, rtol=1e-5, atol=1e-6)


def test_weights_swapped_for_their_average_count_for_the_next_steps_cap(backend):
    """The cap must be that of the weights that are there, not of those it measured while it wrote them."""
    norms = []
    for remember in (True, False):
        model, optimizer = make(max_relative_step=0.01)
        averaged = AveragedModel(model)
        trained(model, optimizer, averaged=averaged)
        with torch.no_grad():
            for param, average in zip(model.parameters(), averaged.module.parameters(), strict=True):
                param.copy_(10.0 * average)
        optimizer.refresh_() if not remember else None
        trained(model, optimizer, steps=1)
        norms.append(model.weight.detach().clone())
    assert_same_bits(norms[0], norms[1])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copy_of_model_and_optimizer_trains_on_by_itself_to_the_same_bits(copied):
    model, optimizer = make(max_norm=0.1, max_relative_step=0.01)
    trained(model, optimizer)
    twin, twins_optimizer = copied((model, optimizer))
    before = model.weight.detach().clone()
    trained(twin, twins_optimizer)
    assert_same_bits(model.weight.detach(), before)
    trained(model, optimizer)
    assert_same_bits(twin.weight.detach(), model.weight.detach())
    assert_same_bits(twins_optimizer.stats.norms, optimizer.stats.norms)


def test_gradients_taken_in_backwards_own_hooks_are_stepped():
    """Optimizers stepped from `register_post_accumulate_grad_hook`, one for each parameter."""
    plain, _ = make()
    hooked, _ = make()
    whole = {name: gradops.AdamW([param], lr=0.05) for name, param in plain.named_parameters()}
    single = {param: gradops.AdamW([param], lr=0.05) for param in hooked.parameters()}

    def step_at_once(param):
        single[param].step()
        param.grad = None

    for param in hooked.parameters():
        param.register_post_accumulate_grad_hook(step_at_once)
    for _ in range(3):
        hooked(torch.ones(2, 4)).square().mean().backward()
        plain(torch.ones(2, 4)).square().mean().backward()
        for optimizer in whole.values():
            optimizer.step()
            optimizer.zero_grad()
    for mine, theirs in zip(hooked.parameters(), plain.parameters(), strict=True):
        assert_same_bits(mine.detach(), theirs.detach())


@pytest.mark.parametrize("foreach", [None, True, False])
def test_step_hooks_see_the_finished_step_whatever_foreach_says(foreach):
    model, optimizer = make(foreach=foreach)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(("before", model.weight.detach().clone())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("after", model.weight.detach().clone())))
    trained(model, optimizer, steps=1)
    assert [name for name, _ in seen] == ["before", "after"]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert_same_bits(seen[1][1], model.weight.detach())
