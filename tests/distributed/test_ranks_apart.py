"""Processes that do not do the same: told at once, or at the latest when the process group's patience ends."""

import datetime

import pytest
import torch
import torch.distributed as dist
from beside import assert_same_bits
from layouts import BACKENDS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import gradops
from gradops.distributed import gather


def make(backend=None, cls=gradops.AdamW, **settings):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = [torch.nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])) for _ in range(2)]
    return params, cls([*zip(("first", "second"), params, strict=True)], lr=0.1, backend=backend, **settings)


def give_grads(params, value=1.0):
    for param in params:
        param.grad = distribute_tensor(torch.full((4, 3), value), param.device_mesh, [Shard(0)])


def with_other_settings(name, values, backend):
    """What the first step of each rank raises, and whether it moved anything."""
    rank = dist.get_rank()
    params, optimizer = make(backend)
    give_grads(params)
    if name in optimizer.param_groups[0]:
        optimizer.param_groups[0][name] = values[rank]
    else:
        setattr(optimizer, name, values[rank])
    with pytest.raises(RuntimeError, match="differ in") as caught:
        optimizer.step()
    assert all(bool((param.to_local() == 1.0).all()) for param in params)
    assert int(optimizer.stats.steps_taken) == 0
    optimizer.param_groups[0]["lr"] = 0.1
    setattr(optimizer, name if name != "lr" else "max_norm", 1.0)
    optimizer.step()
    return str(caught.value), int(optimizer.stats.steps_taken)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_settings_are_told_at_the_first_step(workers, backend):
    (message, taken), other = workers.run(2, with_other_settings, "max_norm", [1.0, 0.5], backend)
    assert (message, taken) == other
    assert "differ in max_norm: 1.0 on rank 0; 0.5 on rank 1" in message
    assert taken == 1
    (message, _), _ = workers.run(2, with_other_settings, "lr", [0.1, 0.2], backend)
    assert "differ in lr of group 0: 0.1 on rank 0; 0.2 on rank 1" in message


def without_gradients(without, steps, backend):
    """One rank has no gradient of some parameters; what all ranks then have."""
    params, optimizer = make(backend, max_norm=0.5, loss_scale="dynamic", max_relative_step=0.5, track_updates=True)
    for step in range(steps):
        give_grads(params, float(optimizer.scale(torch.ones(()))))
        if dist.get_rank() == 1:
            for index in without[step]:
                params[index].grad = None
        optimizer.step()
    counts = int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)
    locals_ = [param.to_local().clone() for param in params]
    return optimizer.stats.cpu(), counts, float(optimizer.engine.buffers.current_scale), locals_


STATS = ("grad_norm", "clip_coef", "found_inf", "loss_scale", "norms", "abs_max", "nonfinite")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rank_without_gradients_takes_the_same_decisions(workers, backend):
    mine, theirs = workers.run(2, without_gradients, [[1], [0, 1], []], 3, backend)
    for name in STATS:
        assert_same_bits(getattr(mine[0], name), getattr(theirs[0], name), name)
    assert mine[1:3] == theirs[1:3] == ((3, 0), 65536.0)
    assert all(bool((local < 1.0).all()) for local in (*mine[3], *theirs[3]))
    (alone, *_), (other, counts, _, unmoved) = workers.run(2, without_gradients, [[0, 1]], 1, backend)
    assert alone.norms.tolist() == other.norms.tolist() == [pytest.approx(6**0.5)] * 2  # half of each
    assert alone.update_ratio.tolist() == other.update_ratio.tolist()
    assert counts == (1, 0)
    assert all(bool((local == 1.0).all()) for local in unmoved)


def no_gradients_at_all(backend):
    """What a step changes in which no rank has a gradient, after one in which all have."""
    guard = gradops.SpikeGuard("clip", warmup_steps=1)
    settings = {"max_norm": 0.5, "loss_scale": "dynamic", "guard": guard, "track_updates": True, "master_weights": True}
    params, optimizer = make(backend, **settings)
    give_grads(params, float(optimizer.scale(torch.ones(()))))
    optimizer.step()
    before = [value.clone() for value in (*optimizer.engine.buffers.all(), *(param.to_local() for param in params))]
    for param in params:
        param.grad = None
    optimizer.scale(torch.ones(()))
    optimizer.step()
    after = [*optimizer.engine.buffers.all(), *(param.to_local() for param in params)]
    return int(optimizer.stats.steps_taken), [torch.equal(one, other) for one, other in zip(before, after, strict=True)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_without_any_gradient_changes_nothing(workers, backend):
    assert workers.run(2, no_gradients_at_all, backend) == [(1, [True] * 10)] * 2


def inf_in_one_replica(backend):
    """What each rank counts, and whether it moved, where only the last rank's replica of a gradient has an inf."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    param = torch.nn.Parameter(distribute_tensor(torch.ones(3), mesh, [Replicate()]))
    optimizer = gradops.AdamW([param], lr=0.1, backend=backend, max_norm=1.0)
    grad = torch.ones(3)
    grad[2] = float("inf") if dist.get_rank() == 1 else 1.0
    param.grad = DTensor.from_local(grad, mesh, [Replicate()], run_check=False)
    optimizer.step()
    stats = optimizer.stats
    return int(stats.steps_skipped), stats.nonfinite.tolist(), float(stats.grad_norm), param.to_local().tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_inf_that_only_one_replica_has_skips_on_all(workers, backend):
    assert workers.run(2, inf_in_one_replica, backend) == [(1, [1], float("inf"), [1.0] * 3)] * 2


def told_of_an_inf_on_one_rank(backend):
    """How many steps each rank skips, and whether it moved, where a GradScaler says on the last rank alone that there
    was an inf, which somebody has taken out of the gradients since.
    """
    params, optimizer = make(backend, max_norm=1.0)
    give_grads(params)
    optimizer.grad_scale, optimizer.found_inf = None, torch.full((), float(dist.get_rank() == 1))
    optimizer.step()
    return int(optimizer.stats.steps_skipped), [bool((param.to_local() == 1.0).all()) for param in params]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_inf_that_only_one_ranks_scaler_has_seen_skips_on_all(workers, backend):
    assert workers.run(2, told_of_an_inf_on_one_rank, backend) == [(1, [True, True])] * 2


def raises_on_one_rank(when, backend):
    """Rank 1 raises in its step; what rank 0 is told within the timeout, and what has moved there."""
    params, optimizer = make(backend, max_norm=1.0)
    for step in range(2):
        give_grads(params)
        if step < when:
            optimizer.step()
            continue
        if dist.get_rank() == 1:
            optimizer.param_groups[0]["lr"] = "fast"
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2), dist.group.WORLD)
        before = [param.to_local().clone() for param in params]
        with pytest.raises(Exception) as caught:  # noqa: PT011  # which is for the test to see
            optimizer.step()
        unmoved = all(torch.equal(param.to_local(), one) for param, one in zip(params, before, strict=True))
        return str(caught.value), unmoved, int(optimizer.stats.steps_taken)
    raise AssertionError


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranks_that_wait_for_one_that_raised_are_told(workers, backend):
    (waiting, unmoved, taken), (raised, *_) = workers.run(2, raises_on_one_rank, 1, backend)
    assert "got no numbers from the other processes within the process group's timeout" in waiting
    assert unmoved
    assert taken == 1
    assert "lr" in raised


def without_an_answer(exchange, backend):
    """What a rank says whose exchange of that number in the step gets no answer, and whether parameters have moved."""
    params, optimizer = make(backend, track_updates=True)
    give_grads(params)
    optimizer.step()
    before = [param.to_local().clone() for param in params]
    answered, calls = gather.all_gather, []

    def times_out(*args, **kwargs):
        calls.append(args)
        if len(calls) == exchange:
            raise RuntimeError("timed out")
        return answered(*args, **kwargs)

    gather.all_gather = times_out
    try:
        with pytest.raises(RuntimeError, match="got no numbers") as caught:
            optimizer.step()
    finally:
        gather.all_gather = answered
    moved = [not torch.equal(param.to_local(), kept) for param, kept in zip(params, before, strict=True)]
    return str(caught.value), moved


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("exchange", "said", "moves"),
    [(1, "Nothing has changed here", False), (2, "Parameters have been updated: go on from the last checkpoint", True)],
)
def test_an_exchange_without_an_answer_says_whether_anything_has_changed(workers, exchange, said, moves, backend):
    for message, moved in workers.run(2, without_an_answer, exchange, backend):
        assert message.endswith(said)
        assert moved == [moves, moves]
