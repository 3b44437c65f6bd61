"""The step in Triton: two launches, or three, whatever the number of tensors."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from gradops.backends.call import Row, StepCall
from gradops.backends.checks import DTYPES
from gradops.backends.triton import rows as words
from gradops.backends.triton import rules
from gradops.backends.triton.agc import unit_coefs_kernel
from gradops.backends.triton.grad_stats import grad_stats_kernel
from gradops.backends.triton.plan_rows import plan_rows_kernel
from gradops.backends.triton.tables import (
    DeviceTable,
    GroupForm,
    RowTable,
    first_chunks,
    form_of,
    group_words,
    is_capturing,
    setting_words,
)
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
    kernel[(programs,)](**arguments, **OPTIONS)


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
        self._units = UnitTable()
        self._in_graphs: list[Any] = []
        self._device, self._launches = "none yet", 2
        self._warned = False
        self.forget_rows()

    def forget_rows(self) -> None:
        self._forms: list[Any] = []
        self._units.clear()
        self._table = RowTable()
        self._numels: list[int] = []
        self._first_chunks: list[int] = []
        self._rows_of_chunks: list[int] = []
        self._work: Workspace | None = None
        self._measured: set[int] = set()

    def description(self) -> str:
        return f"{self._device}, triton {triton.__version__}, {('two', 'three')[self._launches - 2]} launches"

    def step(self, call: StepCall) -> None:
        device = call.buffers.scalars.device
        self._device = str(device)
        with _current(device):
            work = self._link(call.rows, call.groups, device)
            held, arguments = self._arguments(call, work, device)
            unmeasured = self._unmeasured(call.rows, arguments["CAPS"], device)
            self._launch_both(call, work, arguments, unmeasured)
        if is_capturing(device):
            self._captured(held, call.groups)

    def _link(self, rows: list[Row], groups: list[dict[str, Any]], device: torch.device) -> Workspace:
        """Makes the table that of the rows as they are; what was measured stays as long as no size changes."""
        numels = [row.param.numel() for row in rows]
        work = self._work
        if work is None or numels != self._numels or work.decision.device != device:
            self._numels, self._measured, self._forms = numels, set(), []
            self._first_chunks = firsts = first_chunks(rows)
            self._rows_of_chunks = [row for row in range(len(rows)) for _ in range(firsts[row], firsts[row + 1])]
            work = self._work = Workspace(len(rows), firsts[-1], self._code.COEFS, device)
        of_groups = [GroupForm.of(group, self._rule, self._code) for group in groups]
        forms = [form_of(row, of_groups[row.group]) for row in rows]
        if forms != self._forms:
            table = RowTable()
            for row, first in zip(rows, self._first_chunks[:-1], strict=True):
                table.add(row, first, of_groups[row.group])
            self._table, self._forms = table, forms
        return work

    def _arguments(self, call: StepCall, work: Workspace, device: torch.device) -> tuple[list[Tensor], dict[str, Any]]:
        """What both kernels take, and the tensors among it that only this step holds."""
        lrs = [_lr_on(group["lr"], device) for group in call.groups]
        scalars = [_scalar_on(value, device) for value in (call.loss_scale, call.found_inf)]
        arguments = {
            "rows": self._rows.update(self._table.words, device),
            "chunk_rows": self._chunk_rows.update(self._rows_of_chunks, device),
            "layouts": self._layouts.update(self._table.layouts or [0], device),
            "settings": self._settings.update(setting_words(call.settings), device),
            "groups": self._groups.update(
                [w for group, lr in zip(call.groups, lrs, strict=True) for w in group_words(group, lr, self._rule)],
                device,
            ),
            "lr_pointers": self._lr_pointers.update(
                [lr.data_ptr() if isinstance(lr, Tensor) else 0 for lr in lrs], device
            ),
            "loss_scale": scalars[0],
            "found_inf": scalars[1],
            "param_sums": work.param_sums,
            "row_coefs": work.row_coefs,
            "decision": work.decision,
            "chunk_count": self._first_chunks[-1],
            "COEFS": self._code.COEFS,
            "CAPS": call.settings.max_relative_step is not None,
            "MASTERS": call.settings.master_weights,
        }
        return [value for value in (*lrs, *scalars) if isinstance(value, Tensor)], arguments

    def _kinds(self) -> list[int]:
        """The kinds of the rows that take part."""
        size, table = words.ROW_WORDS.value, self._table.words
        rows = (table[at : at + size] for at in range(0, len(table), size))
        return [row[words.KIND.value] for row in rows if row[words.TAKES_PART.value]]

    def _unmeasured(self, rows: list[Row], caps: bool, device: torch.device) -> Tensor | None:
        """A flag for each row whose parameter no step has measured as it is now; None where none is wanted."""
        taking_part = {index for index, row in enumerate(rows) if row.grad is not None}
        if not caps:
            self._measured -= taking_part  # they are about to change, and nothing will measure them
            return None
        wanted = {index for index in taking_part if not rows[index].squares_known} | taking_part - self._measured
        self._measured |= taking_part
        if not wanted:
            return None
        return DeviceTable(torch.int32).update([int(index in wanted) for index in range(len(rows))], device)

    def _launch_both(
        self, call: StepCall, work: Workspace, arguments: dict[str, Any], unmeasured: Tensor | None
    ) -> None:
        kinds, chunks = self._kinds(), arguments["chunk_count"]
        scalars, counters, norms, abs_max, nonfinite, capped, update_ratio, param_rms = call.buffers.all()
        first = {
            **arguments,
            **{name: getattr(work, name) for name in ("chunk_sums", "chunk_counts", "param_counts", "row_sums")},
            "row_counts": work.row_counts,
            "tickets": work.tickets,
            "scalars": scalars,
            "counters": counters,
            "norms": norms,
            "abs_max": abs_max,
            "nonfinite_of": nonfinite,
            "unmeasured": unmeasured,
            "row_count": len(call.rows),
            "DTYPES": _bits(kind // 3 % 3 for kind in kinds),
            "PARAM_DTYPES": _bits(words.updated_dtype(kind, arguments["MASTERS"]) for kind in kinds),
            "NORM": _norm_code(call.settings.norm_type),
            "COEFFICIENTS": self._code.coefficients,
            "HYPER": len(self._rule.hyper),
            "PLANS": self._rule.scale_free or not arguments["CAPS"],
            "SCALED": call.grads_scaled,
            "GUARDS": call.settings.guard is not None,
            "MOVES_LOSS_SCALE": isinstance(loss_scale_policy(call.settings.loss_scale), DynamicLossScale),
        }
        launch(grad_stats_kernel, chunks, first)
        units = self._units.arguments(call, scalars.device)
        if self._units.count:  # between the two kernels: the factor of every unit
            launch(unit_coefs_kernel, self._units.count, self._units.measuring(units, first))
        if not first["PLANS"]:  # between the two, too: the rates that depend on how the gradients were clipped
            launch(plan_rows_kernel, len(call.rows), {name: first[name] for name in plan_rows_kernel.arg_names})
        self._launches = 2 + bool(self._units.count) + (not first["PLANS"])
        taken = ("rows", "chunk_rows", "layouts", "settings", "row_coefs", "decision", "param_sums", "chunk_count")
        second = {name: arguments[name] for name in (*taken, "COEFS", "CAPS", "MASTERS")}
        second |= {name: getattr(work, name) for name in ("param_counts", "moved_sums", "tickets")}
        compensates = call.settings.rounding == "kahan"
        rows = {"capped": capped, "update_ratio": update_ratio, "param_rms": param_rms}
        launch(
            update_step_kernel,
            chunks,
            {
                **second,
                **rows,
                **units,
                "ELEMENT": self._code.element,
                "MOMENTS": self._code.MOMENTS,
                "KINDS_HERE": _bits(kinds),
                "TRACKS": call.settings.track_updates,
                "COMPENSATES": compensates,
            },
        )

    def _captured(self, held: list[Tensor], groups: list[dict[str, Any]]) -> None:
        """A graph reads these addresses whenever it is replayed: they stay as long as this does."""
        tables = (self._rows, self._layouts, self._chunk_rows, self._groups, self._lr_pointers, self._settings)
        for table in (*tables, self._units):
            table.captured()
        self._in_graphs += [self._work, *held]
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


def _scalar_on(value: Tensor | None, device: torch.device) -> Tensor | None:
    return None if value is None else value.to(device, torch.float32, non_blocking=True)
