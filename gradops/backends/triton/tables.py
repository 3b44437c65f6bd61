"""What the Triton kernels read, as arrays on the device: written where something moved, read at every step."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradops.backends.call import Row
from gradops.backends.triton import rows as words
from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import Settings, loss_scale_policy, relative_step_cap
from gradops.update_rule import UpdateRule

CHUNK: int = words.CHUNK.value
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SLOTS = words.TENSORS.value - words.MOMENT0.value

# Size of a dimension and the strides of the tensors in it.
Dim = tuple[int, tuple[int, ...]]


class GroupForm(NamedTuple):
    """What of a group's hyper-parameters changes the code that its rows take."""

    variant: int
    moments: tuple[str | None, ...]  # by slot, the name of the state's entry

    @classmethod
    def of(cls, group: dict[str, Any], rule: UpdateRule, code: Any) -> "GroupForm":
        """Of a group; `code` is the rule's module in `gradops.backends.triton.rules`."""
        variant = code.variant_of(rule.hyper_of(group))
        used = code.MOMENTS[variant]
        return cls(variant, tuple(rule.moment_names[slot] if slot in used else None for slot in range(SLOTS)))


class DeviceTable:
    """The device's copy of numbers that change rarely.

    A change is written to new memory by a copy that nobody waits for: kernels that are under way, and graphs, read the
    old. The staging memory is pinned, and torch keeps it until the copy is done.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._values: Sequence[Any] = ()
        self._tensor: Tensor | None = None
        self._captured: list[Tensor] = []

    def update(self, values: Sequence[Any], device: torch.device) -> Tensor:
        """The numbers on the device; a list that has been given once must not change any more.

        Raises:
            RuntimeError: they changed while a graph is captured, which would copy from memory that is gone at replay.
        """
        known = values is self._values or values == self._values
        if self._tensor is None or self._tensor.device != device or not known:
            if is_capturing(device):
                raise RuntimeError(
                    "gradops: this would copy to the GPU where tensors or param_groups now are, which a graph cannot "
                    "capture; take a step like it before the capture"
                )
            staging = torch.tensor(values, dtype=self._dtype, device="cpu", pin_memory=device.type == "cuda")
            self._tensor = staging.to(device, non_blocking=True)
            self._values = values
        return self._tensor

    def captured(self) -> None:
        """A graph holds the address from now on."""
        if self._tensor is not None and (not self._captured or self._captured[-1] is not self._tensor):
            self._captured.append(self._tensor)


def is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


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


class RowTable:
    """The words of each row, and the layouts that they name."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.layouts: list[int] = []

    def add(self, row: Row, first_chunk: int, group: GroupForm) -> None:
        """Appends a row; without a gradient only what places it among the others."""
        numel = row.param.numel()
        place = [numel, first_chunk, chunks_of(numel), row.group]
        if row.grad is None or row.state is None:
            self.words += [0] * words.STEP.value + [0, *place, 0, 0, 0, 0]
            return
        tensors = tensors_of(row, group)
        dims = layout_of([tensor for tensor in tensors if tensor is not None])
        places = [place for place, tensor in enumerate(tensors) if tensor is not None]
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        linear = len(dims) == 1 and all(stride == 1 for stride in dims[0][1])
        in_vectors = linear and all(pointer % 16 == 0 for pointer in pointers)
        kind = DTYPES[row.param.dtype] + 3 * DTYPES[row.grad.dtype] + 9 * DTYPES[moments_dtype(row, group)]
        kind += 18 * group.variant
        step = row.state["step"].data_ptr()
        self.words += [*pointers, step, *place, 1, kind, int(in_vectors), len(self.layouts)]
        self.layouts.append(len(dims))
        for size, strides in dims:
            of_place = dict(zip(places, strides, strict=True))
            self.layouts += [size, *(of_place.get(place, 0) for place in range(len(tensors)))]


def tensors_of(row: Row, group: GroupForm) -> list[Tensor | None]:
    """The tensors of a row that takes part, in the order of its words; None where there is none."""
    assert row.state is not None
    moments = [None if name is None else row.state[name] for name in group.moments]
    rounded = None if row.updated is row.param else row.param
    return [row.updated, row.grad, rounded, row.state.get("compensation"), *moments]


def moments_dtype(row: Row, group: GroupForm) -> torch.dtype:
    """Of all moments of a row that takes part; float32 where it has none."""
    assert row.state is not None
    return next((row.state[name].dtype for name in group.moments if name is not None), torch.float32)


def form_of(row: Row, group: GroupForm) -> tuple[Any, ...] | None:
    """What the words of a row depend on; None for one that takes no part."""
    if row.grad is None or row.state is None:
        return None
    param, grad, state = row.param, row.grad, row.state
    tensors = tensors_of(row, group)
    forms = [None if tensor is None else (tensor.data_ptr(), tensor.stride()) for tensor in tensors]
    dtypes = (param.dtype, grad.dtype, moments_dtype(row, group))
    return (param.shape, *dtypes, state["step"].data_ptr(), row.group, group, *forms)


def group_words(group: dict[str, Any], lr: float | Tensor, rule: UpdateRule) -> list[float]:
    """A group's hyper-parameters; of a tensor lr only its dtype."""
    return [
        0.0 if isinstance(lr, Tensor) else float(lr),
        float(isinstance(lr, Tensor) and lr.dtype == torch.float64),
        float(group["weight_decay"]),
        float(rule.decouples(group)),
        float(group["maximize"]),
        float(group["l1"]),
        *rule.hyper_of(group),
    ]


def setting_words(settings: Settings) -> list[float]:
    """The settings of a step, and inf where nothing is limited."""
    cap = relative_step_cap(settings.max_relative_step)
    policy = loss_scale_policy(settings.loss_scale)
    agc = settings.clip_mode == "agc"
    limits = [None if agc else settings.max_norm, settings.norm_type, settings.clip_value]
    numbers = [math.inf if value is None else float(value) for value in limits]
    numbers += [math.inf, 0.0, 0.0] if cap is None else [cap.cap, cap.floor, float(cap.warmup_steps)]
    if isinstance(policy, DynamicLossScale):
        numbers += [policy.growth_factor, policy.backoff_factor, float(policy.growth_interval)]
        numbers += [policy.min_scale, policy.max_scale]
    else:
        numbers += [1.0] * 5
    guard = settings.guard
    if guard is None:
        numbers += [math.inf, *[1.0] * 7]
    else:
        numbers += [guard.ratio, guard.z_score, float(guard.skips), guard.lr_cut, guard.lr_growth, guard.min_lr_factor]
        numbers += [float(guard.history), float(guard.warmup_steps)]
    return [*numbers, float(settings.max_norm) if agc and settings.max_norm is not None else math.inf]


def first_chunks(rows: Sequence[Row]) -> list[int]:
    """The first chunk of each row, and behind the last the number of all."""
    return [0, *accumulate(chunks_of(row.param.numel()) for row in rows)]
