"""`optimizer.stats`: live buffers at fixed addresses, with snapshots on demand."""

import copy
import os

import pytest
import torch

import gradops

SCALARS = {
    "grad_norm": torch.float32,
    "clip_coef": torch.float32,
    "found_inf": torch.float32,
    "loss_scale": torch.float32,
    "steps_taken": torch.int64,
    "steps_skipped": torch.int64,
}
ROWS = {
    "norms": torch.float32,
    "abs_max": torch.float32,
    "nonfinite": torch.int64,
    "capped": torch.bool,
    "update_ratio": torch.float32,
    "param_rms": torch.float32,
}


def make(device="cpu", n_params=3, **settings):
    params = [(f"layer{row}.weight", torch.ones(4, device=device).requires_grad_()) for row in range(n_params)]
    return gradops.AdamW(params, **settings), [param for _, param in params]


def step(optimizer, params, value=1.0):
    for row, param in enumerate(params):
        param.grad = torch.full_like(param, value * (row + 1))
    optimizer.step()


def test_fields_have_the_promised_shapes_and_dtypes(device):
    optimizer, params = make(device)
    for _ in range(2):
        for name, dtype in SCALARS.items():
            value = getattr(optimizer.stats, name)
            assert (value.shape, value.dtype, value.device.type) == ((), dtype, device.type), name
        for name, dtype in ROWS.items():
            value = getattr(optimizer.stats, name)
            assert (value.shape, value.dtype, value.device.type) == ((3,), dtype, device.type), name
        step(optimizer, params)


def test_before_the_first_step_nothing_was_taken(device):
    optimizer, _ = make(device)
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (0, 0)


def test_values_of_one_step(device):
    optimizer, params = make(device, max_norm=1.0)
    step(optimizer, params)
    stats = optimizer.stats
    assert stats.norms.tolist() == [2.0, 4.0, 6.0]
    assert stats.abs_max.tolist() == [1.0, 2.0, 3.0]
    assert stats.grad_norm.item() == pytest.approx(56**0.5)
    assert stats.clip_coef.item() == pytest.approx(1 / 56**0.5, rel=1e-5)
    assert (stats.found_inf.item(), int(stats.steps_taken)) == (0.0, 1)


def test_buffers_are_live_at_fixed_addresses(device):
    optimizer, params = make(device)
    step(optimizer, params)
    held = {name: getattr(optimizer.stats, name) for name in (*SCALARS, *ROWS)}
    addresses = {name: value.data_ptr() for name, value in held.items()}
    step(optimizer, params, 10.0)
    assert held["grad_norm"].item() == pytest.approx(10 * 56**0.5)
    assert {name: getattr(optimizer.stats, name).data_ptr() for name in held} == addresses


def test_appending_live_buffers_is_the_documented_mistake_and_clone_the_cure(device):
    optimizer, params = make(device)
    mistake, history = [], []
    for value in (1.0, 2.0, 3.0):
        step(optimizer, params, value)
        mistake.append(optimizer.stats.grad_norm)
        history.append(optimizer.stats.clone())
    assert len({float(norm) for norm in mistake}) == 1
    assert [float(stats.grad_norm) for stats in history] == pytest.approx([56**0.5, 2 * 56**0.5, 3 * 56**0.5])
    assert [int(stats.steps_taken) for stats in history] == [1, 2, 3]
    assert [stats.norms[0].item() for stats in history] == [2.0, 4.0, 6.0]
    assert "clone" in (type(optimizer.stats).__doc__ or "")
    assert "history.append" in (type(optimizer.stats).__doc__ or "")


def test_cpu_gives_a_snapshot_on_the_cpu(device):
    optimizer, params = make(device)
    step(optimizer, params)
    snapshot = optimizer.stats.cpu()
    step(optimizer, params, 2.0)
    assert snapshot.grad_norm.device.type == "cpu"
    assert snapshot.grad_norm.item() == pytest.approx(56**0.5)
    assert list(snapshot.names) == [f"layer{row}.weight" for row in range(3)]


def test_names_are_those_of_named_parameters(device):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1)).to(device)
    optimizer = gradops.wrap(torch.optim.AdamW(model.named_parameters()))
    assert list(optimizer.stats.names) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_unnamed_parameters_get_distinct_names(device):
    model = torch.nn.Linear(2, 3).to(device)
    names = list(gradops.AdamW(model.parameters()).stats.names)
    assert len(set(names)) == 2
    assert all(isinstance(name, str) and name for name in names)


def test_names_run_over_all_groups(device):
    groups = [{"params": [(name, torch.ones(2, device=device).requires_grad_())]} for name in "ab"]
    optimizer = gradops.AdamW(groups)
    optimizer.add_param_group({"params": [("c", torch.ones(2, device=device).requires_grad_())]})
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.ones(2, device=device)
    optimizer.step()
    assert list(optimizer.stats.names) == ["a", "b", "c"]
    assert optimizer.stats.norms.shape == (3,)


def test_counters_survive_an_added_group(device):
    optimizer, params = make(device)
    step(optimizer, params)
    optimizer.add_param_group({"params": [("late", torch.ones(2, device=device).requires_grad_())]})
    step(optimizer, params)
    assert int(optimizer.stats.steps_taken) == 2


def test_deepcopy_of_the_optimizer_has_its_own_stats(device):
    optimizer, params = make(device)
    step(optimizer, params)
    twin = copy.deepcopy(optimizer)
    step(optimizer, params, 5.0)
    assert int(twin.stats.steps_taken) == 1
    assert twin.stats.grad_norm.item() == pytest.approx(56**0.5)


def test_gradients_are_left_as_backward_made_them(device):
    optimizer, params = make(device, max_norm=1e-3, clip_value=0.5, loss_scale=64.0)
    optimizer.backward(sum((param * 3).sum() for param in params))
    optimizer.step()
    assert all(param.grad.tolist() == [192.0] * 4 for param in params)


def test_repr_is_readable(device):
    optimizer, params = make(device)
    step(optimizer, params)
    assert "grad_norm" in repr(optimizer.stats)


BACKENDS = {"one_launch": "one cooperative launch", "two_launches": "two launches", None: "cpu, "}


def test_backend_says_what_ran_the_step():
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = gradops.AdamW([param])
    assert optimizer.stats.backend == "none yet"
    optimizer.step()
    assert optimizer.stats.backend.startswith(BACKENDS[os.environ.get("GRADOPS_EMULATED_FORM")])


def test_one_launch_can_be_switched_off(backend, device):
    if backend != "native" or (device.type == "cpu" and "GRADOPS_EMULATED_FORM" not in os.environ):
        pytest.skip("only native code on a GPU, or emulated, has that form")
    before = gradops._C.allow_one_launch(False)
    try:
        optimizer, params = make(device)
        step(optimizer, params)
    finally:
        gradops._C.allow_one_launch(before)
    assert optimizer.stats.backend == "two launches: one launch is switched off"
