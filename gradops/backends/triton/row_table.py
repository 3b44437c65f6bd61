"""What the Triton kernels read of the rows, as numbers: linked where something moved, kept where nothing did."""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradops.backends.call import Row
from gradops.backends.triton import rows as words
from gradops.update_rule import UpdateRule

CHUNK: int = words.CHUNK.value
GRAD: int = words.GRAD.value
IN_VECTORS: int = words.IN_VECTORS.value
LAYOUT: int = words.LAYOUT.value
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SLOTS = words.TENSORS.value - words.MOMENT0.value

# Size of a dimension and the strides of the tensors in it.
Dim = tuple[int, tuple[int, ...]]
# Links, and the gradient's address and strides; None for a row that takes no part.
Form = tuple[int, int, tuple[int, ...]] | None


class GroupForm(NamedTuple):
    """What of a group's hyper-parameters changes the code that its rows take."""

    variant: int
    moments: tuple[str | None, ...]  # by slot, the name of the state's entry
    scalar: str | None  # of the number beside the step

    @classmethod
    def of(cls, group: dict[str, Any], rule: UpdateRule, code: Any) -> "GroupForm":
        """Of a group; `code` is the rule's module in `gradops.backends.triton.rules`."""
        variant = code.variant_of(rule.hyper_of(group))
        used = code.MOMENTS[variant]
        moments = tuple(rule.moment_names[slot] if slot in used else None for slot in range(SLOTS))
        return cls(variant, moments, next((scalar.name for scalar in rule.scalars), None))


class LinkedRow(NamedTuple):
    """A row's words, all but the place of its layout."""

    words: list[int]
    layout: list[int]
    fits: bool  # whether it is accessed in vectors where its gradient begins at 16 bytes


class RowTable:
    """The words of all rows, and the layouts that they name.

    Attributes:
        words: of all rows, one after the other; another list where one has changed.
        layouts: of those that take part.
        kinds: theirs.
        part: their indices.
        numels: of every row; another list where one has changed.
        first_chunks: of every row, and behind the last the number of all chunks.
        rows_of_chunks: the row of each chunk.
    """

    def __init__(self) -> None:
        self.words: list[int] = []
        self.layouts: list[int] = []
        self.kinds: set[int] = set()
        self.part: list[int] = []
        self.numels: list[int] = []
        self.first_chunks: list[int] = [0]
        self.rows_of_chunks: list[int] = []
        self._groups: list[GroupForm] = []
        self._forms: list[Form] = []
        self._linked: list[LinkedRow] = []

    def follow(self, rows: Sequence[Row], groups: list[GroupForm]) -> None:
        """Makes it that of the rows as they are."""
        forms = [form_of(row) for row in rows]
        if forms == self._forms and groups == self._groups:
            return
        numels = [row.param.numel() for row in rows]
        before: Sequence[Form | tuple[()]] = self._forms
        if numels != self.numels or groups != self._groups:
            before = [()] * len(rows)  # no row has this form
            self._linked = [LinkedRow([], [], False)] * len(rows)
        if numels != self.numels:
            self._place(numels)
        for index, (form, known) in enumerate(zip(forms, before, strict=True)):
            if form != known:
                self._linked[index] = self._link(
                    rows[index], index, groups, bool(form and known and moved(form, known))
                )
        self._forms, self._groups = forms, groups
        self._gather()

    def _place(self, numels: list[int]) -> None:
        counts = [chunks_of(numel) for numel in numels]
        self.numels, self.first_chunks = numels, [0, *accumulate(counts)]
        self.rows_of_chunks = [row for row, count in enumerate(counts) for _ in range(count)]

    def _link(self, row: Row, index: int, groups: list[GroupForm], only_grad_moved: bool) -> LinkedRow:
        if only_grad_moved and row.grad is not None:
            return with_grad_at(self._linked[index], row.grad.data_ptr())
        return linked(row, self.first_chunks[index], groups[row.group])

    def _gather(self) -> None:
        self.part = [index for index, form in enumerate(self._forms) if form is not None]
        self.kinds = {self._linked[index].words[words.KIND.value] for index in self.part}
        places = accumulate((len(row.layout) for row in self._linked), initial=0)
        for row, place in zip(self._linked, places, strict=False):
            row.words[LAYOUT] = place
        self.words = list(chain.from_iterable(row.words for row in self._linked))
        self.layouts = list(chain.from_iterable(row.layout for row in self._linked)) or [0]


def form_of(row: Row) -> Form:
    """What the words of a row depend on beside its group."""
    grad = row.grad
    return None if grad is None or row.state is None else (row.links, grad.data_ptr(), grad.stride())


def moved(form: tuple[Any, ...], known: tuple[Any, ...]) -> bool:
    """Whether the gradient has moved and nothing else has."""
    return form[0] == known[0] and form[2] == known[2]


def with_grad_at(row: LinkedRow, pointer: int) -> LinkedRow:
    moved_words = row.words.copy()
    moved_words[GRAD], moved_words[IN_VECTORS] = pointer, int(row.fits and pointer % 16 == 0)
    return row._replace(words=moved_words)


def linked(row: Row, first_chunk: int, group: GroupForm) -> LinkedRow:
    """A row's words; without a gradient only what places it among the others."""
    numel = row.param.numel()
    place = [numel, first_chunk, chunks_of(numel), row.group]
    if row.grad is None or row.state is None:
        return LinkedRow([0] * words.STEP.value + [0, *place, 0, 0, 0, 0, 0], [], False)
    tensors = tensors_of(row, group)
    dims = layout_of([tensor for tensor in tensors if tensor is not None])
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    linear = len(dims) == 1 and all(stride == 1 for stride in dims[0][1])
    fits = linear and all(pointer % 16 == 0 for slot, pointer in enumerate(pointers) if slot != GRAD)
    kind = DTYPES[row.param.dtype] + 3 * DTYPES[row.grad.dtype] + 9 * DTYPES[moments_dtype(row, group)]
    kind += 18 * group.variant
    in_vectors = int(fits and pointers[GRAD] % 16 == 0)
    layout = layout_words(dims, [place for place, tensor in enumerate(tensors) if tensor is not None])
    step, scalar = row.state["step"].data_ptr(), 0 if group.scalar is None else row.state[group.scalar].data_ptr()
    return LinkedRow([*pointers, step, *place, 1, kind, in_vectors, 0, scalar], layout, fits)


def tensors_of(row: Row, group: GroupForm) -> list[Tensor | None]:
    """The tensors of a row that takes part, in the order of its words; None where there is none."""
    assert row.state is not None
    moments = [None if name is None else row.state[name] for name in group.moments]
    rounded = None if row.updated is row.param else row.param
    return [row.updated, row.grad, rounded, row.state.get("compensation"), row.state.get("ema"), *moments]


def moments_dtype(row: Row, group: GroupForm) -> torch.dtype:
    """Of all moments of a row that takes part; float32 where it has none."""
    assert row.state is not None
    return next((row.state[name].dtype for name in group.moments if name is not None), torch.float32)


def chunks_of(numel: int) -> int:
    """A row without elements has one, too: its program counts its step."""
    return max(1, -(-numel // CHUNK))


def layout_of(tensors: Sequence[Tensor]) -> list[Dim]:
    """The dimensions in which all tensors are walked, innermost first: in the order of the first one's memory.

    Dimensions that follow one another in every tensor are one.
    """
    shape = tensors[0].shape
    strides = [tensor.stride() for tensor in tensors]
    order = (
        []
        if 0 in shape
        else sorted((dim for dim, size in enumerate(shape) if size != 1), key=lambda dim: strides[0][dim])
    )
    dims: list[Dim] = []
    for dim in order:
        steps = tuple(stride[dim] for stride in strides)
        if dims:
            size, inner = dims[-1]
            if all(step == size * before for step, before in zip(steps, inner, strict=True)):
                dims[-1] = (size * shape[dim], inner)
                continue
        dims.append((shape[dim], steps))
    return dims or [(1, (1,) * len(tensors))]


def layout_words(dims: list[Dim], places: list[int]) -> list[int]:
    """How many dimensions there are; then of each its size and the stride of each of a row's tensors.

    Args:
        dims: the dimensions.
        places: among a row's tensors, of those that the strides are of.
    """
    found = [len(dims)]
    for size, strides in dims:
        of_place = dict(zip(places, strides, strict=True))
        found += [size, *(of_place.get(place, 0) for place in range(words.TENSORS.value))]
    return found
