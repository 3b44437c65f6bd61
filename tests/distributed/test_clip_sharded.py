"""`clip_grad_norm_` of sharded gradients is that of the full ones."""

import math

import layouts
import pytest
import tolerances as tol
import torch
from beside import assert_close, assert_same_bits
from torch.distributed.tensor import DTensor

import gradops


def clip(layout, world, norm_type, poison, dtype=torch.float32):
    """The gradients, as imaginary parts beside real ones where the dtype is complex."""
    where = (lambda index: None) if layout is None else layouts.placements_of(layout, world)
    params = [torch.nn.Parameter(layouts.spread(value, where(i))) for i, value in enumerate(layouts.parameters(dtype))]
    for index, grad in enumerate(layouts.gradients(0, poison)):
        full = torch.complex(grad.flip(0), grad).to(dtype) if dtype.is_complex else grad.to(dtype)
        params[index].grad = layouts.spread(full, where(index))
    norm = gradops.clip_grad_norm_(params, 0.5, norm_type)
    assert isinstance(norm, DTensor) == (layout is not None)  # as torch's, on which code calls full_tensor()
    return layouts.full(norm), [layouts.full(param.grad) for param in params]


@pytest.mark.parametrize("poison", [None, (0, 4, math.inf), (0, 1, math.nan)])
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
@pytest.mark.parametrize(("world", "layout"), [(2, "replicated_beside"), (4, "mixed_meshes")])
def test_clipping_shards_is_clipping_the_whole(workers, world, layout, norm_type, poison):
    results = workers.run(world, clip, layout, world, norm_type, poison)
    norm, grads = clip(None, 1, norm_type, poison)
    for mine, of_rank in results:
        assert type(mine) is torch.Tensor
        assert_same_bits(mine, results[0][0])
        assert_close(mine, norm, tol.NORM)
        for grad, expected in zip(of_rank, grads, strict=True):
            assert_close(grad, expected, tol.CLIP_COEF)


@pytest.mark.parametrize("poison", [None, (0, 4, math.inf)])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_shards_are_clipped_as_the_whole(workers, dtype, poison):
    results = workers.run(2, clip, "fsdp", 2, 2.0, poison, dtype)
    norm, grads = clip(None, 1, 2.0, poison, dtype)
    for mine, of_rank in results:
        torch.testing.assert_close(mine, norm)
        for grad, expected in zip(of_rank, grads, strict=True):
            torch.testing.assert_close(torch.view_as_real(grad), torch.view_as_real(expected), equal_nan=True)
