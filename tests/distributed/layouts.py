"""Parameters spread over processes in every way that the tests try, and steps of them."""

import os

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import gradops

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
IN_PYTHON = "triton" if INTERPRETED else "torch"  # the backend that tests of one in Python run with
BACKENDS = [IN_PYTHON] if INTERPRETED else ["native", IN_PYTHON]

# Uneven over 2 and 4 ranks, smaller than a world, without elements, beyond one chunk.
SHAPES = [(7, 5), (3,), (1, 4), (0,), (4100, 3), (6, 6)]
SMALL = [*SHAPES[:4], (11, 3), SHAPES[5]]  # for the interpreter

LAYOUTS = {
    2: ["fsdp", "replicated_beside"],
    4: ["fsdp", "hsdp", "two_dimensional", "mixed_meshes", "replicated_beside"],
}


def placements_of(layout, world):
    """A function from a parameter's number to its mesh and placements; None for a plain tensor."""
    if layout == "hsdp":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
        return lambda index: (mesh, [Replicate(), Shard(0)])
    if layout == "two_dimensional":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
        return lambda index: (mesh, [Shard(0), Shard(1 if len(SHAPES[index]) > 1 else 0)])
    if layout == "mixed_meshes":
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("dp", "tp"))
        return lambda index: (mesh, [Replicate(), Shard(0)]) if index % 2 else (mesh["dp"], [Shard(0)])
    mesh = init_device_mesh("cpu", (world,))
    if layout == "replicated_beside":
        choices = [(mesh, [Shard(0)]), (mesh, [Replicate()]), None]
        return lambda index: choices[index % 3]
    return lambda index: (mesh, [Shard(0)])


def spread(tensor, where):
    return tensor if where is None else distribute_tensor(tensor, *where)


def full(tensor):
    """The whole tensor. Complex numbers travel as pairs of real ones: gloo of torch 2.8 and older gathers no others."""
    if not isinstance(tensor, DTensor):
        return tensor
    if not tensor.is_complex():
        return tensor.full_tensor()
    shape = torch.Size([*tensor.shape, 2])
    local = torch.view_as_real(tensor.to_local())
    stride = torch.empty(shape, device="meta").stride()
    pairs = DTensor.from_local(local, tensor.device_mesh, tensor.placements, shape=shape, stride=stride)
    return torch.view_as_complex(pairs.full_tensor())


def gradients(step, poison=None, shapes=SHAPES):
    """The full gradients of a step; `poison` is (step, parameter, value of its last element)."""
    generator = torch.Generator().manual_seed(step)
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    if poison is not None and poison[0] == step:
        grads[poison[1]].view(-1)[-1] = poison[2]
    return grads


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def train(
    layout, world, settings, steps=3, poison=None, magnitude=1.0, dtype=torch.float32, cls=gradops.AdamW, shapes=SHAPES
):
    """Steps with given gradients; returns what the optimizer then has, as full tensors. No layout: unsharded."""
    where = (lambda index: None) if layout is None else placements_of(layout, world)
    params = [torch.nn.Parameter(spread(value, where(index))) for index, value in enumerate(parameters(dtype, shapes))]
    halves = [{"params": params[:3]}, {"params": params[3:], "lr": 3e-3, "weight_decay": 0.1}]
    optimizer = cls(halves, lr=1e-2, **settings)
    for step in range(steps):
        for index, (param, grad) in enumerate(zip(params, gradients(step, poison, shapes), strict=True)):
            param.grad = spread((grad * magnitude).to(dtype), where(index))
        params[1].grad = None if step == 1 else params[1].grad
        if optimizer.loss_scale is not None:
            optimizer.scale(torch.zeros(()))
        optimizer.step()
    return result_of(optimizer, params)


def result_of(optimizer, params):
    states = [optimizer.state.get(param, {}) for param in params]
    return {
        "params": [full(param.detach()) for param in params],
        "states": [{key: full(value).clone() for key, value in state.items()} for state in states],
        "stats": optimizer.stats.cpu(),
        "scale": float(optimizer.engine.buffers.current_scale),
        "backend": optimizer.stats.backend,
    }
