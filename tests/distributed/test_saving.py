"""Checkpoints across numbers of processes, and across crashes."""

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import tolerances as tol
import torch
from beside import assert_close, assert_same_bits
from layouts import full
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import gradops

POLICY = gradops.DynamicLossScale(init_scale=64.0, growth_interval=2)


# What adds to the state, with the dtype of the parameters.
STATES = {
    "moments": ({}, torch.float32),
    "masters and averages": ({"master_weights": True, "ema": gradops.WeightEma(0.7, inv_gamma=1.0)}, torch.bfloat16),
    "compensations": ({"rounding": "kahan", "max_relative_step": 0.05}, torch.bfloat16),
}


def build(world, kind="moments"):
    torch.manual_seed(3)
    settings, dtype = STATES[kind]
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GELU(), torch.nn.Linear(16, 3)).to(dtype)
    if world > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    optimizer = gradops.AdamW(model.named_parameters(), lr=1e-2, max_norm=0.1, loss_scale=POLICY, **settings)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)


def train(model, optimizer, scheduler, first, last):
    """Steps on the same batch on every rank, so that every number of processes sees the same gradients."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        inputs, targets = torch.randn(4, 6, generator=generator), torch.randn(4, 3, generator=generator)
        inputs[0, 0] = float("inf") if step == 1 else inputs[0, 0]
        outputs = model(inputs.to(next(model.parameters()).dtype))
        optimizer.backward(torch.nn.functional.mse_loss(outputs.float(), targets))
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()


def summary(model, optimizer):
    state = optimizer.state_dict()
    return {
        "params": [full(param.detach()).clone() for param in model.parameters()],
        "state": [full(value).clone() for param in model.parameters() for value in optimizer.state[param].values()],
        "steps": [int(optimizer.state[param]["step"]) for param in model.parameters()],
        "group": {key: value for key, value in state["param_groups"][0].items() if key != "params"},
    }


def run(world, path, until=None, resume=False, kind="moments"):
    """Trains to 5; saves at `until`, or begins with what was saved at 3."""
    model, optimizer, scheduler = build(world, kind)
    before = [full(param.detach()).clone() for param in model.parameters()]
    if resume:
        gradops.load_checkpoint(path, model, optimizer, scheduler=scheduler)
        loaded = summary(model, optimizer)
        train(model, optimizer, scheduler, 3, 5)
        return loaded, summary(model, optimizer)
    train(model, optimizer, scheduler, 0, until or 5)
    if until:
        gradops.save_checkpoint(path, model, optimizer, scheduler=scheduler)
    return before, summary(model, optimizer)


WORLDS = [(4, 4), (2, 4), (4, 1), (1, 3)]
CASES = [*((*worlds, kind) for kind in STATES for worlds in WORLDS), (4, 2, "moments"), (2, 1, "moments")]


@pytest.mark.parametrize(("saved_by", "loaded_by", "kind"), CASES)
def test_another_number_of_processes_goes_on_where_the_first_stopped(workers, tmp_path, saved_by, loaded_by, kind):
    _, saved = workers.run(saved_by, run, saved_by, tmp_path, 3, False, kind)[0]
    _, uninterrupted = workers.run(loaded_by, run, loaded_by, tmp_path, None, False, kind)[0]
    near = tol.TORCH_FLOAT32 if kind == "moments" else tol.Tolerance(2.0**-7, 1e-3, "a bfloat16's last place; atol x 1")
    for loaded, resumed in workers.run(loaded_by, run, loaded_by, tmp_path, None, True, kind):
        assert loaded["steps"] == saved["steps"] == [2] * 4
        assert loaded["group"] == saved["group"]
        assert loaded["group"]["gradops_steps_skipped"] == 1
        assert resumed["group"] == uninterrupted["group"]
        assert resumed["steps"] == uninterrupted["steps"] == [4] * 4
        for key in ("params", "state"):
            for one, two in zip(loaded[key], saved[key], strict=True):
                assert_same_bits(one.to(two.dtype), two, key)  # torch's loader makes a compensation float32
            for one, two in zip(resumed[key], uninterrupted[key], strict=True):
                assert_same_bits(one, two) if saved_by == loaded_by else assert_close(one, two, near, 1.0)


def ghost(world):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    model, optimizer, _ = build(world)
    before = [full(param.detach()).clone() for param in model.parameters()]
    state = get_optimizer_state_dict(model, optimizer)["state"]
    steps = [int(entry["step"]) for entry in state.values()]
    moved = [not torch.equal(full(p.detach()), b) for p, b in zip(model.parameters(), before, strict=True)]
    return steps, moved, int(optimizer.stats.steps_taken), float(optimizer.engine.buffers.current_scale)


@pytest.mark.parametrize("world", [2, 4])
def test_ghost_step_creates_sharded_state_and_moves_nothing(workers, world):
    assert workers.run(world, ghost, world) == [([0] * 4, [False] * 4, 0, 64.0)] * world


def test_dying_at_any_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    script = Path(__file__).with_name("crashing_save.py")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "run"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    deaths, followed = map(int, done.stdout.split())
    # Before the new one counts and after, or this has not tested what it says.
    assert deaths > 8
    assert 1 <= followed < deaths


def save_and_lose_a_rank(path, again):
    """Saves at 3, or `again` loads that, trains on, and loses rank 1 while it writes the next."""
    model, optimizer, scheduler = build(2)
    if again:
        gradops.load_checkpoint(path, model, optimizer, scheduler=scheduler)
    else:
        train(model, optimizer, scheduler, 0, 3)
        gradops.save_checkpoint(path, model, optimizer, scheduler=scheduler)
    train(model, optimizer, scheduler, 3, 5)
    if torch.distributed.get_rank() == 1:
        FileSystemWriter.write_data = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    gradops.save_checkpoint(path, model, optimizer, scheduler=scheduler)


@pytest.mark.slow
def test_a_rank_that_dies_while_it_writes_leaves_the_old_checkpoint_each_time(workers, tmp_path):
    for again in (False, True, True):
        with pytest.raises(AssertionError, match="rank 0"):
            workers.run(2, save_and_lose_a_rank, tmp_path, again)
    (loaded, resumed), _ = workers.run(2, run, 2, tmp_path, None, True)
    _, uninterrupted = workers.run(2, run, 2, tmp_path)[0]
    assert loaded["steps"] == [2] * 4
    for one, two in zip(resumed["params"], uninterrupted["params"], strict=True):
        assert_same_bits(one, two)


def test_a_folder_without_a_checkpoint_is_said_to_have_none(tmp_path):
    model, optimizer, _ = build(1)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        gradops.load_checkpoint(tmp_path, model, optimizer)


def test_one_process_saves_and_loads_without_a_warning(tmp_path):
    model, optimizer, scheduler = build(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradops.save_checkpoint(tmp_path, model, optimizer, scheduler=scheduler)
        gradops.load_checkpoint(tmp_path, model, optimizer, scheduler=scheduler)
