"""The step in Triton: a few launches, whatever the number of tensors; most steps are two."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from gradops.backends.call import Row, StepCall
from gradops.backends.checks import DTYPES
from gradops.backends.torch.rates import lr_of
from gradops.backends.triton import rows as words
from gradops.backends.triton import rules
from gradops.backends.triton.agc import unit_coefs_kernel
from gradops.backends.triton.grad_stats import grad_stats_kernel
from gradops.backends.triton.plan_rows import plan_rows_kernel
from gradops.backends.triton.row_table import GroupForm, RowTable
from gradops.backends.triton.shared_step import NOTHING_SHARED, SharedStep
from gradops.backends.triton.tables import DeviceTable, group_words, is_capturing, setting_words
from gradops.backends.triton.triton_before_3_5 import name_by_sources_before_3_5
from gradops.backends.triton.units import UnitTable
from gradops.backends.triton.update_step import update_step_kernel
from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import loss_scale_policy
from gradops.update_rule import UpdateRule

# Products and sums are rounded each for itself, as the other backends round them.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

FLOAT_LR = (
    "gradops: a float lr is captured as it is now, and the graph's replays will not follow a scheduler; pass "
    "lr=torch.tensor(...) on the parameters' device"
)


def launch(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
    """The one place that starts a kernel, so that tests see what is compiled and how."""
    name_by_sources_before_3_5(kernel)
    kernel[(programs,)](**arguments, **OPTIONS)


def _launch_taken(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
    """Starts a kernel with those of the arguments that it has."""
    launch(kernel, programs, {name: arguments[name] for name in kernel.arg_names})


class Workspace:
    """Device memory that programs hand to each other. `param_sums` outlives a step; the rest is written in each."""

    def __init__(self, rows: int, chunks: int, coefs: int, device: torch.device) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.chunk_sums = zeros(2, chunks, dtype=torch.float64)
        self.chunk_counts = zeros(2, chunks, dtype=torch.int64)
        self.param_sums = zeros(2, chunks, dtype=torch.float64)
        self.param_counts = zeros(2, chunks, dtype=torch.int64)
        self.moved_sums = zeros(2, chunks, dtype=torch.float64)
        self.row_sums = zeros(2, rows, dtype=torch.float64)
        self.row_counts = zeros(2, rows, dtype=torch.int64)
        self.row_coefs = zeros(rows, words.OWN_COEFS.value + coefs, dtype=torch.float32)
        self.decision = zeros(3, dtype=torch.float32)
        self.tickets = zeros(rows + 1, dtype=torch.int32)


class TritonStep:
    """Steps by Triton kernels. Tables on the device say where the tensors lie; they are written when one has moved.

    A tensor whose strides differ from its parameter's, or that begins off 16 bytes, is read and written element by
    element, in the order of the parameter's memory; nothing is copied.

    Args:
        rule: an update rule that `gradops.backends.triton.rules` has.
    """

    DTYPES: tuple[torch.dtype, ...] = DTYPES

    def __init__(self, rule: UpdateRule) -> None:
        self._rule, self._code = rule, rules.load(rule)
        self._rows, self._layouts = DeviceTable(torch.int64), DeviceTable(torch.int64)
        self._chunk_rows = DeviceTable(torch.int32)
        self._groups, self._lr_pointers = DeviceTable(torch.float64), DeviceTable(torch.int64)
        self._settings = DeviceTable(torch.float64)
        self._units, self._shared = UnitTable(), SharedStep()
        self._in_graphs: list[Any] = []
        self._device, self._launches = "none yet", 2
        self._warned = False
        self.forget_rows()

    def forget_rows(self) -> None:
        self._units.clear()
        self._table = RowTable()
        self._work: Workspace | None = None
        self._measured: set[int] = set()

    def description(self) -> str:
        launches = ("two", "three", "four", "five", "six")[self._launches - 2]
        return f"{self._device}, triton {triton.__version__}, {launches} launches"

    def step(self, call: StepCall) -> None:
        device = call.buffers.scalars.device
        self._device = str(device)
        with _current(device):
            work = self._link(call, device)
            held, tables = self._tables(call, device)
            arguments = {**tables, **vars(work), **NOTHING_SHARED, **self._rest(call, device)}
            if call.exchange is None:
                self._launch_all(arguments, len(call.rows))
            else:
                self._launches = self._shared.launch_all(call, call.exchange, arguments, _launch_taken)
        if is_capturing(device):
            self._captured(held, call.groups)

    def _link(self, call: StepCall, device: torch.device) -> Workspace:
        """Makes the table that of the rows as they are; what was measured stays as long as no size changes."""
        sizes = self._table.numels
        self._table.follow(call.rows, [GroupForm.of(group, self._rule, self._code) for group in call.groups])
        work = self._work
        if work is None or self._table.numels is not sizes or work.decision.device != device:
            self._measured = set()
            work = Workspace(len(call.rows), self._table.first_chunks[-1], self._code.COEFS, device)
            self._work = work
        return work

    def _tables(self, call: StepCall, device: torch.device) -> tuple[list[Tensor], dict[str, Any]]:
        """The tables on the device, the scalars beside them, and of all these the tensors that only this step holds."""
        lrs = [_lr_on(lr_of(group), device) for group in call.groups]
        loss_scale, found_inf = (_scalar_on(value, device) for value in (call.loss_scale, call.found_inf))
        groups = [w for group, lr in zip(call.groups, lrs, strict=True) for w in group_words(group, lr, self._rule)]
        tables = {
            "rows": self._rows.update(self._table.words, device),
            "chunk_rows": self._chunk_rows.update(self._table.rows_of_chunks, device),
            "layouts": self._layouts.update(self._table.layouts, device),
            "settings": self._settings.update(setting_words(call.settings), device),
            "groups": self._groups.update(groups, device),
            "lr_pointers": self._lr_pointers.update([_address(lr) for lr in lrs], device),
            "loss_scale": loss_scale,
            "found_inf": found_inf,
            **self._units.arguments(call, self._table, device),
        }
        return [value for value in (*lrs, loss_scale, found_inf) if isinstance(value, Tensor)], tables

    def _rest(self, call: StepCall, device: torch.device) -> dict[str, Any]:
        """What kernels write, what they are compiled for, and how much there is."""
        settings, buffers, kinds = call.settings, call.buffers, self._table.kinds
        caps, masters = settings.max_relative_step is not None, settings.master_weights
        measures = settings.measures_params(self._rule)
        by_grads = not self._rule.scale_free or self._rule.needs_norms
        return {
            "scalars": buffers.scalars,
            "counters": buffers.counters,
            "norms": buffers.norms,
            "abs_max": buffers.abs_max,
            "nonfinite_of": buffers.nonfinite,
            "capped": buffers.capped,
            "update_ratio": buffers.update_ratio,
            "param_rms": buffers.param_rms,
            "unmeasured": self._unmeasured(call.rows, measures, device),
            "row_count": len(call.rows),
            "chunk_count": self._table.first_chunks[-1],
            "DTYPES": _bits(kind // 3 % 3 for kind in kinds),
            "PARAM_DTYPES": _bits(words.updated_dtype(kind, masters) for kind in kinds),
            "KINDS_HERE": _bits(kinds),
            "NORM": _norm_code(settings.norm_type),
            "COEFFICIENTS": self._code.coefficients,
            "GRAD_FACTOR": self._code.grad_factor if self._rule.needs_norms else None,
            "ELEMENT": self._code.element,
            "ADAPTS": getattr(self._code, "adapts", None),
            "NEXT_SCALAR": getattr(self._code, "next_scalar", None),
            "COEFS": self._code.COEFS,
            "MOMENTS": self._code.MOMENTS,
            "HYPER": len(self._rule.hyper),
            "PLANS": not measures or not (by_grads or call.exchange is not None),
            "BY_GRADS": by_grads,
            "CAPS": caps,
            "SQUARES": measures or settings.track_updates,
            "TRACKS": settings.track_updates,
            "MASTERS": masters,
            "AVERAGES": settings.ema is not None,
            "COMPENSATES": settings.rounding == "kahan",
            "SCALED": call.grads_scaled,
            "GUARDS": settings.guard is not None,
            "MOVES_LOSS_SCALE": isinstance(loss_scale_policy(settings.loss_scale), DynamicLossScale),
        }

    def _unmeasured(self, rows: list[Row], measures: bool, device: torch.device) -> Tensor | None:
        """A flag for each row whose parameter no step has measured as it is now; None where none is wanted."""
        part, measured = self._table.part, self._measured
        if not measures:
            measured.difference_update(part)  # they are about to change, and nothing will measure them
            return None
        wanted = {index for index in part if not rows[index].squares_known or index not in measured}
        measured.update(wanted)
        if not wanted:
            return None
        return DeviceTable(torch.int32).update([int(index in wanted) for index in range(len(rows))], device)

    def _launch_all(self, arguments: dict[str, Any], rows: int) -> None:
        chunks, units = arguments["chunk_count"], self._units.count
        _launch_taken(grad_stats_kernel, chunks, arguments)
        if units:  # the factor of each
            _launch_taken(unit_coefs_kernel, units, arguments)
        if not arguments["PLANS"]:  # the rates that depend on how the gradients are clipped
            _launch_taken(plan_rows_kernel, rows, arguments)
        _launch_taken(update_step_kernel, chunks, arguments)
        self._launches = 2 + bool(units) + (not arguments["PLANS"])

    def _captured(self, held: list[Tensor], groups: list[dict[str, Any]]) -> None:
        """A graph reads these addresses whenever it is replayed: they stay as long as this does."""
        tables = (self._rows, self._layouts, self._chunk_rows, self._groups, self._lr_pointers, self._settings)
        for table in (*tables, self._units):
            table.captured()
        self._in_graphs += [self._work, *held, *self._shared.captured()]
        if not self._warned and not all(isinstance(group["lr"], Tensor) for group in groups):
            self._warned = True
            warnings.warn(FLOAT_LR, stacklevel=2)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes the device the one that kernels are launched on."""
    return nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def _bits(numbers: Any) -> int:
    """An integer with each of these bits."""
    return sum(1 << number for number in set(numbers))


def _norm_code(norm_type: float) -> int:
    """As triton_math counts norms."""
    return {float("inf"): 0, 1.0: 1, 2.0: 2}.get(float(norm_type), 3)


def _lr_on(lr: float | Tensor, device: torch.device) -> float | Tensor:
    """An lr that the kernel can read on the device; one on the CPU is a number."""
    if not isinstance(lr, Tensor) or (lr.device != device and lr.device.type == "cpu"):
        return float(lr)
    if lr.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(f"gradops: a tensor lr must be Float or Double, got {lr.dtype}")
    return lr.to(device, non_blocking=True)


def _address(lr: float | Tensor) -> int:
    return lr.data_ptr() if isinstance(lr, Tensor) else 0


def _scalar_on(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device, torch.float32, non_blocking=True)
