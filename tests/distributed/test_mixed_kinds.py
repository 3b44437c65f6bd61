"""Sharded parameters beside frozen ones of any kind, and in float64."""

import pytest
import tolerances as tol
import torch
from beside import assert_close
from layouts import train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import gradops

WITHIN = tol.Tolerance(1e-12, 1e-12, "three steps in float64, whose norms are merged from shards; atol x 1")


@pytest.mark.parametrize("settings", [{"max_norm": 0.3}, {"max_relative_step": 0.01, "track_updates": True}], ids=str)
def test_sharded_float64_steps_as_unsharded_float64_does(settings, workers):
    expected = train(None, 1, settings, dtype=torch.float64)
    for result in workers.run(2, train, "fsdp", 2, settings, 3, None, 1.0, torch.float64):
        for mine, theirs in zip(result["params"], expected["params"], strict=True):
            assert mine.dtype == torch.float64
            assert_close(mine, theirs, WITHIN, 1.0)
        for mine, theirs in zip(result["states"], expected["states"], strict=True):
            assert_close(mine["exp_avg"], theirs["exp_avg"], WITHIN, 1e-2)
        assert "ranks" in result["stats"].backend


def beside_frozen_ones():
    """What is stepped, the rows of statistics, and the number of states."""
    mesh = init_device_mesh("cpu", (2,))

    def spread(tensor, **options):
        return torch.nn.Parameter(distribute_tensor(tensor, mesh, [Shard(0)]), **options)

    weight = spread(torch.ones(4, 3))
    frozen = {
        "quantised": spread(torch.ones(4, dtype=torch.int8), requires_grad=False),
        "mask": torch.nn.Parameter(torch.ones(4, dtype=torch.bool), requires_grad=False),
        "ghost": torch.nn.Parameter(torch.ones(4, device="meta"), requires_grad=False),
        "half": spread(torch.ones(4, dtype=torch.bfloat16), requires_grad=False),
    }
    optimizer = gradops.AdamW([*frozen.items(), ("weight", weight)], lr=0.1, max_norm=1.0, master_weights=True)
    for _ in range(2):
        weight.grad = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])
        optimizer.step()
    frozen["ghost"].grad = torch.ones(4, device="meta")
    with pytest.raises(RuntimeError, match="parameter of 'ghost' is on meta; wrap after materialising it"):
        optimizer.step()
    return weight.full_tensor().detach(), optimizer.stats.clone(), len(optimizer.state)


def test_frozen_parameters_of_any_kind_stand_beside_sharded_ones(workers):
    plain = torch.nn.Parameter(torch.ones(4, 3))
    usual = gradops.AdamW([plain], lr=0.1, max_norm=1.0)
    for _ in range(2):
        plain.grad = torch.ones(4, 3)
        usual.step()
    for weight, stats, states in workers.run(2, beside_frozen_ones):
        torch.testing.assert_close(weight, plain.detach(), rtol=1e-6, atol=1e-7)
        assert stats.norms.tolist() == [0.0, 0.0, 0.0, 0.0, pytest.approx(12**0.5)]
        assert int(stats.steps_taken) == 2
        assert states == 1


def clipped_float64():
    """The norm and the gradients after clipping, as full tensors."""
    mesh = init_device_mesh("cpu", (2,))
    grads = [torch.linspace(-1.0, 2.0, 12, dtype=torch.float64).view(4, 3), torch.ones(3, dtype=torch.float64)]
    params = [torch.nn.Parameter(torch.ones_like(grad)) for grad in grads]
    params[0] = torch.nn.Parameter(distribute_tensor(torch.ones_like(grads[0]), mesh, [Shard(0)]))
    params[0].grad, params[1].grad = distribute_tensor(grads[0], mesh, [Shard(0)]), grads[1].clone()
    norm = gradops.clip_grad_norm_(params, 0.3)
    return norm.full_tensor(), params[0].grad.full_tensor(), params[1].grad, grads


def test_sharded_float64_gradients_are_clipped_in_float64(workers):
    for norm, first, second, grads in workers.run(2, clipped_float64):
        expected = torch.cat([grad.flatten() for grad in grads]).norm()
        assert norm.dtype == torch.float64
        assert_close(norm, expected, WITHIN)
        for mine, grad in zip((first, second), grads, strict=True):
            assert_close(mine, grad * (0.3 / (expected + 1e-6)), WITHIN, 0.1)
