"""Ways to spread parameters that would step apart are refused, with the reason."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

import gradops


def refusals():
    """What each attempt raises."""
    messages = {}

    def attempt(name, build):
        try:
            build()
        except (TypeError, RuntimeError, ValueError) as error:
            messages[name] = f"{type(error).__name__}: {error}"

    model = torch.nn.Linear(4, 4)
    attempt("zero_of_ours", lambda: ZeroRedundancyOptimizer(model.parameters(), gradops.AdamW, max_norm=1.0))
    plain = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.1)
    attempt("wrapped_zero", lambda: gradops.wrap(plain, max_norm=1.0))
    attempt("wrapped_inside_zero", lambda: gradops.wrap(plain.optim, max_norm=1.0))
    attempt("wrapped_ordinary", lambda: gradops.wrap(torch.optim.AdamW(model.parameters())))
    attempt("ordinary", lambda: gradops.AdamW(model.parameters()))
    for original in (False, True):
        flat = FullyShardedDataParallel(torch.nn.Linear(4, 4), device_id=torch.device("cpu"), use_orig_params=original)
        attempt(f"fsdp1, {original}", lambda flat=flat: gradops.AdamW(flat.parameters(), max_norm=1.0))
    mesh = init_device_mesh("cpu", (2,))
    partial = torch.nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()]))
    attempt("partial", lambda: gradops.AdamW([partial]))
    for dtype in (torch.float32, torch.bfloat16):
        shard = torch.nn.Parameter(distribute_tensor(torch.ones(4, dtype=dtype), mesh))
        attempt(f"master, {dtype}", lambda shard=shard: gradops.AdamW([shard], master_weights=True))
        attempt(f"kahan, {dtype}", lambda shard=shard: gradops.AdamW([shard], rounding="kahan"))
    return messages


def test_parts_that_would_step_apart_are_refused(workers):
    for messages in workers.run(2, refusals):
        assert set(messages) == {
            *("zero_of_ours", "wrapped_zero", "wrapped_inside_zero", "fsdp1, False", "fsdp1, True", "partial"),
            *("master, torch.bfloat16", "kahan, torch.float32", "kahan, torch.bfloat16"),
        }
        for dtype in ("float32", "bfloat16"):
            assert "rounding cannot be set where parameters are sharded" in messages[f"kahan, torch.{dtype}"]
        assert "a sharded parameter in half precision can have no master" in messages["master, torch.bfloat16"]
        assert "ZeroRedundancyOptimizer hands each process's optimizer a part" in messages["zero_of_ours"]
        assert messages["wrapped_zero"] == messages["wrapped_inside_zero"] == messages["zero_of_ours"]
        for original in (False, True):
            assert "FullyShardedDataParallel's flat parameters" in messages[f"fsdp1, {original}"]
        assert "partial placement" in messages["partial"]


def meshes_without_a_common_group():
    halves = [init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))[name] for name in ("a", "b")]
    params = [torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh)) for mesh in halves]
    with pytest.raises(RuntimeError, match="no process group spans the ranks"):
        gradops.AdamW(params)


def test_meshes_that_no_group_spans_are_refused(workers):
    workers.run(4, meshes_without_a_common_group)
