"""Gradients that no kernel takes (complex, sparse, lazy views) as real numbers, for torch's own operations."""

import torch
from torch import Tensor


def sizes(grad: Tensor) -> Tensor:
    """The absolute values of a gradient's elements, without the zeros that a sparse one leaves out."""
    if grad.layout == torch.sparse_coo:
        grad = grad.coalesce().values()
    elif grad.layout != torch.strided:
        grad = grad.values()
    if grad.dtype == torch.complex32:
        grad = grad.to(torch.complex64)  # where |z| leaves float16's range, z need not
    return grad.abs()


def multiply_(grad: Tensor, factor: Tensor) -> None:
    """Multiplies a gradient in place by a real 0-d factor; by 1 it leaves infs and NaNs as they were.

    A complex product with 1 would make an inf a NaN: complex elements are multiplied as pairs of reals.
    """
    if not grad.is_complex():
        grad.mul_(factor.to(grad.device))
        return
    values = grad
    if grad.layout == torch.sparse_coo:
        values = grad._values()
    elif grad.layout != torch.strided:
        values = grad.values()
    torch.view_as_real(values.conj() if values.is_conj() else values).mul_(factor.to(grad.device))
    if values is not grad:
        torch.autograd.graph.increment_version(grad)
