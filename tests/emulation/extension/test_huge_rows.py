"""Rows of more than 2^31 elements on the emulated kernels: some of their pieces are stepped as those of a small tensor.

The memory is there only where a piece lies, and a kernel that touches anything else is a fault.
"""

import emulator
import numpy as np
import pytest
import torch
from beside import assert_same_bits
from quick import slow_but
from watched import PIECE, Watched, lib, memory_of

import gradops

MOMENTS = ("exp_avg", "exp_avg_sq")
# A vector; and rows whose gradients are padded, so that neither numbers nor places divide into pieces.
LAYOUTS = {"vector": (1, 2**31 + 4099, 2**31 + 4099), "padded": (2**31 // 1000 + 7, 1000, 1040)}


def pieces_of(rows, columns, width):
    """The first, the last, and those on both sides of where a count of elements or bytes passes 31 or 32 bits."""
    crossings = [2**bits for bits in (29, 30, 31)]
    crossings += [crossing // width * columns for crossing in crossings]
    numel = rows * columns
    around = {place + side for place in crossings for side in (-PIECE, 0) if 0 < place < numel}
    return sorted({place // PIECE for place in (0, *around, numel - 1)})


def reserved(rows, columns, width, dtype):
    """Zeros, of shape (rows, columns), whose memory is taken when somebody writes there."""
    words = {2: np.int16, 4: np.int32}[torch.empty(0, dtype=dtype).element_size()]
    return torch.from_numpy(np.zeros((rows, width), dtype=words)).view(dtype)[:, :columns]


class Places:
    """Where the elements of some pieces lie in a tensor of this shape."""

    def __init__(self, rows, columns, pieces):
        numbers = [torch.arange(p * PIECE, min((p + 1) * PIECE, rows * columns)) for p in pieces]
        self.index = [(of_piece // columns, of_piece % columns) for of_piece in numbers]
        self.count = sum(map(len, numbers))

    def read(self, tensor):
        return torch.cat([tensor[index] for index in self.index])

    def write(self, tensor, values):
        for index, part in zip(self.index, values.split([len(row) for row, _ in self.index]), strict=True):
            tensor[index] = part

    def memory(self, tensor):
        """A numpy array for each piece, from its first element to its last."""
        for row, column in self.index:
            offsets = row * tensor.stride(0) + column
            yield memory_of(tensor)[int(offsets[0]) : int(offsets[-1]) + 1]


class SomePieces(Watched):
    """The plan of an optimizer with one huge parameter, of which it steps these pieces."""

    def __init__(self, optimizer, pieces, places, **gpu):
        super().__init__(optimizer, **gpu)
        self.pieces, self.places = torch.tensor(pieces), places

    def step(self, *arguments):
        lib.emulated_pieces(self.pieces.data_ptr(), len(self.pieces))
        try:
            return super().step(*arguments)
        finally:
            lib.emulated_pieces(None, 0)

    def arrays(self, param_groups, state, *scaling):
        arrays = super().arrays(param_groups, state, *scaling)
        (param,) = param_groups[0]["params"]
        arrays["param"] = list(self.places.memory(param))
        arrays["grad"] = [emulator.read_only(array) for array in self.places.memory(param.grad)]
        arrays.update({name: list(self.places.memory(state[param][name])) for name in MOMENTS})
        return arrays


def stepped(param, moments, watch):
    """Two steps of an optimizer that `watch(optimizer)` watches; the norm of the last gradient."""
    optimizer = gradops.AdamW([param], lr=0.1, max_norm=0.5)
    optimizer.state[param] = {"step": torch.zeros(()), **dict(zip(MOMENTS, moments, strict=True))}
    watch(optimizer)
    for _ in range(2):
        optimizer.step()
    return optimizer.stats.grad_norm


@pytest.mark.parametrize("dtype", slow_but([torch.float32], [torch.float32, torch.bfloat16]))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pieces_beyond_31_bits_are_stepped_as_those_of_a_small_tensor(layout, dtype):
    rows, columns, width = LAYOUTS[layout]
    pieces = pieces_of(rows, columns, width)
    places = Places(rows, columns, pieces)
    generator = torch.Generator().manual_seed(7)
    values, grads = (torch.randn(places.count, generator=generator).to(dtype) for _ in range(2))
    huge, grad = reserved(rows, columns, columns, dtype), reserved(rows, columns, width, dtype)
    places.write(huge, values)
    places.write(grad, grads)
    huge.requires_grad_().grad = grad
    huge_moments = [reserved(rows, columns, columns, torch.float32) for _ in MOMENTS]
    gpu = {"blocks": 3, "seed": 11}
    norm = stepped(huge, huge_moments, lambda optimizer: SomePieces(optimizer, pieces, places, **gpu))
    small, moments = values.requires_grad_(), [torch.zeros(places.count) for _ in MOMENTS]
    small.grad = grads
    expected = stepped(small, moments, lambda optimizer: Watched(optimizer, **gpu))
    assert_same_bits(norm, expected, "grad_norm")
    for tensor, wanted, what in zip(
        (huge.detach(), *huge_moments), (small.detach(), *moments), ("param", *MOMENTS), strict=True
    ):
        assert_same_bits(places.read(tensor), wanted, what)
