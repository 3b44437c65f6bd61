"""Ways to spread parameters that would step apart are refused, with the reason."""

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

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
    shard = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh))
    agc = {"clip_mode": "agc", "max_norm": 0.01}
    for backend in ("native", "torch"):
        attempt(
            f"all settings, {backend}", lambda of=backend: gradops.AdamW([shard], rounding="kahan", **agc, backend=of)
        )
    across = torch.nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(1)]))
    attempt("pieces of units", lambda: gradops.AdamW([("head.weight", across)], **agc))
    attempt("pieces of units, torch", lambda: gradops.AdamW([("head.weight", across)], **agc, backend="torch"))
    later = gradops.AdamW([("head.weight", across)], max_norm=0.01)
    across.grad = distribute_tensor(torch.ones(4, 4), mesh, [Shard(1)])
    later.clip_mode = "agc"
    attempt("pieces of units, later", later.step)
    attempt("spared", lambda: gradops.AdamW([{"params": [across], "agc": False}], **agc))
    return messages


def test_parts_that_would_step_apart_are_refused(workers):
    for messages in workers.run(2, refusals):
        assert set(messages) == {
            *("zero_of_ours", "wrapped_zero", "wrapped_inside_zero", "fsdp1, False", "fsdp1, True", "partial"),
            *("pieces of units", "pieces of units, torch", "pieces of units, later"),
        }
        assert "parameter 'head.weight' is sharded over dimension 1" in messages["pieces of units"]
        assert messages["pieces of units, later"] == messages["pieces of units, torch"] == messages["pieces of units"]
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
