"""Costs are counted: the bytes, calls and waits that documentation states are those of the recipes' own operators."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from gradops.bench.costs import CostMode, count_costs, kernels, one_pass_bytes
from gradops.bench.models import shapes
from gradops.bench.optimizers import subject
from gradops.bench.recipes import GRADOPS, GRADOPS_SCALED, RECIPES, make_grads, make_params, native_recipes
from gradops.optim.classes import classes

# As docs/costs.md derives them: bytes per float32 parameter, waits of the host.
DERIVED = {
    "torch loop + GradScaler + clip": (100, 1),
    "torch loop + clip": (92, 0),
    "torch foreach + GradScaler + clip": (100, 1),
    "torch foreach + clip": (92, 0),
    "torch fused + GradScaler + clip": (48, 0),
    "torch fused + clip": (40, 0),
    "gradops + loss scale": (32, 0),
    "gradops": (32, 0),
    "gradops + max_relative_step": (32, 0),
}
# The fastest native recipe of each optimizer with GradScaler and clip, and ours: bytes per float32 parameter.
OF_OPTIMIZERS = {
    "Adam": (48, 32),
    "AdamW": (48, 32),
    "SGD": (40, 24),
}
CASE = shapes("5x10000")


def documented():
    """Bytes, calls and waits by recipe, as the table of docs/costs.md has them."""
    page = Path(__file__).resolve().parents[2] / "docs" / "costs.md"
    lines = [line for line in page.read_text().splitlines() if line.startswith(("| torch", "| gradops"))]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: (sum(int(part or 0) for part in row[1:5]), *row[5:]) for row in cells}


def test_page_states_what_is_counted():
    table = documented()
    assert len(table) == 6
    for name, (total, stated, calls, waits) in table.items():
        recipe = next(recipe for recipe in RECIPES if recipe.name == name.split(",")[0])
        assert (total, total, int(waits)) == (int(stated), *DERIVED[recipe.name])
        per_tensor, _, once = calls.rpartition(" a tensor and ")
        assert counted(recipe).calls == int(once) + int(per_tensor or 0) * len(CASE)


def counted(recipe, dtype=torch.float32):
    params = make_params(CASE, [grad.to(dtype) for grad in make_grads(CASE)])
    step = recipe.build(params)
    step()
    return count_costs(step, params)


def moved(recipe):
    return round(counted(recipe).bytes / sum(map(math.prod, CASE)) + recipe.hidden_bytes(4))


@pytest.mark.parametrize("name", classes())
def test_bytes_of_every_optimizer_are_its_moments_and_less_than_the_native_recipes(name):
    found = {recipe.name: moved(recipe) for recipe in native_recipes(subject(name)) if "Ema" not in recipe.name}
    native = max(found.values())
    assert found[GRADOPS] == found[GRADOPS_SCALED] == 16 + 8 * subject(name).moments < native
    assert (native, found[GRADOPS]) == OF_OPTIMIZERS.get(name, (native, found[GRADOPS]))


@pytest.mark.parametrize(("name", "bytes_moved"), [("AdamW", (60, 40)), ("SGD", (52, 32))])
def test_an_average_of_the_weights_is_12_bytes_of_timms_and_8_of_ours(name, bytes_moved):
    pytest.importorskip("timm")
    by_name = {recipe.name: recipe for recipe in native_recipes(subject(name))}
    native = by_name["torch fused + GradScaler + clip + ModelEmaV3"]
    assert (moved(native), moved(by_name[native.versus])) == bytes_moved


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.name in DERIVED], ids=lambda r: r.name)
def test_bytes_and_waits_are_the_derived_ones(recipe):
    assert (moved(recipe), counted(recipe).waits) == DERIVED[recipe.name]


def test_half_precision_parameters_move_less():
    fused = next(recipe for recipe in RECIPES if recipe.name == "torch fused + clip")
    assert round(counted(fused, torch.bfloat16).bytes / sum(map(math.prod, CASE))) == 20
    assert one_pass_bytes(2) == 24
    assert one_pass_bytes(2, master=True) == 30
    assert one_pass_bytes(2, compensation=True) == 28
    assert one_pass_bytes(4, moment=2) == 24
    assert one_pass_bytes(4, moments=1) == 24
    assert one_pass_bytes(4, ema=True) == 40


def test_loop_calls_grow_with_the_tensors_and_those_of_foreach_fused_and_gradops_do_not():
    calls = {recipe.name: counted(recipe).calls for recipe in RECIPES if recipe.hidden_bytes is not None}
    assert calls["torch loop + clip"] > 5 * 8
    assert calls["torch foreach + GradScaler + clip"] == 26
    assert calls["torch fused + GradScaler + clip"] == 21
    assert calls["gradops"] == 2


def mode_costs(function, derived=()):
    mode = CostMode(derived)
    with mode:
        function()
    return mode.costs


def test_operators_count_what_they_read_and_write():
    x, y = torch.ones(10), torch.ones(10)
    assert mode_costs(lambda: x.add_(y)).bytes == 3 * 40
    assert mode_costs(lambda: x.mul_(x)).bytes == 2 * 40
    assert mode_costs(lambda: x.copy_(y)).bytes == 2 * 40
    assert mode_costs(lambda: x.zero_()).bytes == 40
    assert mode_costs(lambda: x.view(2, 5).t()).calls == 0


def test_fused_adam_writes_gradients_only_when_it_unscales_them():
    def fused(**scale):
        (param,) = make_params([(1000,)], make_grads([(1000,)]))
        optimizer = torch.optim.AdamW([param], fused=True)
        optimizer.step()
        for key, value in scale.items():
            setattr(optimizer, key, value)
        return mode_costs(optimizer.step).bytes

    extra = fused(grad_scale=torch.ones(()), found_inf=torch.zeros(())) - fused()
    assert 4000 <= extra < 4100


def test_kernels_of_a_gpu_are_neither_copies_nor_ranges():
    def event(name, device=DeviceType.CUDA, is_range=False):
        return SimpleNamespace(name=name, device_type=device, is_user_annotation=is_range)

    events = [
        event("one_pass_kernel"),
        event("Memcpy DtoH (Device -> Pinned)"),
        event("gradops.step", is_range=True),
        event("cudaLaunchKernel", DeviceType.CPU),
    ]
    assert kernels(events) == 1


def test_only_values_that_come_from_the_device_are_waits():
    grad, step = torch.ones(3), torch.ones(())
    assert mode_costs(lambda: step.add_(1).item(), [grad]).waits == 0
    assert mode_costs(lambda: grad.sum().sqrt().item(), [grad]).waits == 1
    assert mode_costs(lambda: step.add_(grad.sum()).item(), [grad]).waits == 1
