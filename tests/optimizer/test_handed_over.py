"""State that others hold too: other processes, uncopied dicts, optimizers made of this one's groups."""

import copy
import warnings

import pytest
import torch
import torch.multiprocessing as mp
from beside import params_of

import gradops

STEPS = 50


def make(wrapped=True, **settings):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, gradops.wrap(optimizer, **settings) if wrapped else optimizer


def train(optimizer, steps):
    for step in range(steps):
        torch.manual_seed(step)
        if getattr(optimizer, "loss_scale", None):
            optimizer.scale(torch.zeros(()))
        for param in params_of(optimizer):
            param.grad = torch.randn_like(param)
        optimizer.step()


def in_turns(optimizer, mine, others):
    """Steps of two processes, one after the other, so that their sum is no matter of luck."""
    torch.set_num_threads(1)
    for _ in range(STEPS):
        mine.acquire()
        train(optimizer, 1)
        others.release()


# Not torch's own operations in a fork: they may not run there once they have run here.
@pytest.mark.parametrize(("start", "backend"), [("fork", "native"), ("spawn", "native"), ("spawn", "torch")])
def test_counters_in_shared_memory_count_the_steps_of_every_process(start, backend):
    model, optimizer = make(backend=backend)
    model.share_memory()
    train(optimizer, 1)
    for state in optimizer.state.values():
        for value in state.values():
            value.share_memory_()
    _, alone = make(backend=backend)
    for _ in range(1 + 2 * STEPS):
        train(alone, 1)
    context = mp.get_context(start)
    first, second = context.Semaphore(1), context.Semaphore(0)
    workers = [
        context.Process(target=in_turns, args=(optimizer, *turns)) for turns in ((first, second), (second, first))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    for param, same, state in zip(params_of(optimizer), params_of(alone), optimizer.state.values(), strict=True):
        assert int(state["step"]) == 1 + 2 * STEPS
        assert torch.equal(param, same)


def step_and_send(optimizer, results):
    train(optimizer, 2)
    state = optimizer.state_dict()["param_groups"][0]
    results.put(([param.tolist() for param in params_of(optimizer)], optimizer.max_norm, state["gradops_steps_taken"]))


@pytest.mark.parametrize(
    ("settings", "stepped"),
    [
        ({"max_norm": 0.5, "loss_scale": "dynamic"}, 3),
        *(pytest.param({}, stepped, marks=pytest.mark.slow) for stepped in (0, 3)),
    ],
)
def test_optimizer_travels_to_a_spawned_process(settings, stepped):
    _, optimizer = make(**settings)
    train(optimizer, stepped)
    expected = copy.deepcopy(optimizer)
    train(expected, 2)
    context = mp.get_context("spawn")
    results = context.Queue()
    worker = context.Process(target=step_and_send, args=(optimizer, results))
    worker.start()
    params, max_norm, taken = results.get(timeout=120)
    worker.join(60)
    assert worker.exitcode == 0
    assert params == [param.tolist() for param in params_of(expected)]
    assert max_norm == settings.get("max_norm")
    assert taken == stepped + 2
    train(optimizer, 1)  # the one that stayed goes on


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_uncopied_state_dict_lives_as_torchs_does(backend):
    _, optimizer = make(backend=backend)
    train(optimizer, 2)
    kept = optimizer.state_dict()
    train(optimizer, 49)
    now = optimizer.state_dict()
    for index, state in kept["state"].items():
        assert int(state["step"]) == 51
        assert all(torch.equal(value, now["state"][index][key]) for key, value in state.items())


def test_plain_torch_counts_on_from_a_state_dict_of_ours():
    _, optimizer = make()
    _, plain = make(wrapped=False)
    train(optimizer, 2)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(plain, 3)
    assert [int(state["step"]) for state in plain.state.values()] == [5, 5]


SETTINGS = {"max_norm": 2.0, "loss_scale": 8.0, "l1": 0.1, "clip_value": 3.0, "max_relative_step": 0.1}


def settings_of(optimizer):
    return {name: getattr(optimizer, name) for name in SETTINGS}


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW])
def test_settings_travel_with_the_groups(cls):
    optimizer = gradops.wrap(cls([torch.nn.Parameter(torch.ones(3))]), **SETTINGS)
    for groups in (
        optimizer.param_groups,
        [dict(group) for group in optimizer.param_groups],
        iter(optimizer.param_groups),
    ):
        assert settings_of(type(optimizer)(groups)) == SETTINGS
    assert settings_of(type(optimizer)(optimizer.param_groups, max_norm=3.0)) == {**SETTINGS, "max_norm": 3.0}


def test_settings_travel_with_the_defaults():
    optimizer = gradops.Adam([torch.nn.Parameter(torch.ones(3))], **SETTINGS)
    again = type(optimizer)([torch.nn.Parameter(torch.ones(3))], **optimizer.defaults)
    assert settings_of(again) == SETTINGS
    assert not set(SETTINGS) & set(again.param_groups[0])
    again.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "l1": 0.5})
    assert again.param_groups[1]["l1"] == 0.5
    assert "max_norm" not in again.param_groups[1]


def test_settings_that_were_set_later_travel_too():
    optimizer = gradops.Adam([torch.nn.Parameter(torch.ones(3))], max_norm=2.0)
    optimizer.max_norm = 5.0
    train(optimizer, 1)
    assert optimizer.defaults["max_norm"] == 5.0
    assert type(optimizer)(optimizer.param_groups).max_norm == 5.0


def test_groups_of_an_optimizer_that_is_gone_warn():
    groups = [{**group, "params": [torch.nn.Parameter(torch.ones(3))]} for group in make(max_norm=1.0)[1].param_groups]
    with pytest.warns(UserWarning, match="whose settings .* are not known"):
        gradops.AdamW([dict(group) for group in groups])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradops.AdamW(groups, max_norm=1.0)


def test_unwrap_leaves_nothing_of_ours_in_the_defaults():
    _, optimizer = make(max_norm=1.0)
    _, plain = make(wrapped=False)
    assert gradops.unwrap(optimizer).defaults == plain.defaults
