"""The launches of a step of which processes have parts of the rows: between measuring and deciding is an exchange."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import StepCall
from gradops.backends.sharded.exchange import TAKES_NO_PART, Exchange, RowStats
from gradops.backends.torch.math import update_ratio
from gradops.backends.triton import rows as words
from gradops.backends.triton.agc import unit_coefs_kernel
from gradops.backends.triton.grad_stats import grad_stats_kernel
from gradops.backends.triton.plan_rows import plan_rows_kernel
from gradops.backends.triton.shared import decide_kernel, unit_norms_kernel
from gradops.backends.triton.tables import DeviceTable
from gradops.backends.triton.update_step import update_step_kernel
from gradops.settings import Settings

Launch = Callable[[Any, int, dict[str, Any]], None]

# Arguments of the kernels that only such a step has, as they are in any other.
NOTHING_SHARED: dict[str, Any] = {
    "param_norms": None,
    "roots": None,
    "unit_norms": None,
    "update_norms": None,
    "DECIDES": True,
}


class SharedStep:
    """Launches such steps.

    Attributes:
        memory: on the device, what kernels leave for the exchange; those named as buffers stand in their place, since
            the buffers take what is true of the whole rows.
    """

    def __init__(self) -> None:
        self.memory: dict[str, Tensor] = {}
        self._one_unit = DeviceTable(torch.int32)

    def launch_all(self, call: StepCall, exchange: Exchange, arguments: dict[str, Any], launch: Launch) -> int:
        """One step, by the `arguments` of all kernels; returns how many launches it was."""
        device, rows, chunks = call.buffers.scalars.device, len(call.rows), arguments["chunk_count"]
        by_units = call.settings.clip_mode == "agc"
        units = arguments["unit_coefs"].numel() - 1 if by_units else 0  # of this process, which may have none
        self._link(rows, device)
        measures = not arguments["PLANS"]
        arguments = {**arguments, **self.memory, "DECIDES": False}
        arguments["param_norms"] = self.memory["param_norms"] if measures else None
        if arguments["loss_scale"] is None:
            arguments["loss_scale"] = torch.ones((), dtype=torch.float32, device=device)
            arguments["SCALED"] = False
        launch(grad_stats_kernel, chunks, arguments)
        if by_units:
            arguments["one_unit"] = self._one_unit.update(_one_unit_rows(call), device)
            launch(unit_norms_kernel, rows, arguments)
        taking_part = self._share(call, exchange, arguments, by_units)
        launch(decide_kernel, 1, arguments)
        if units:
            launch(unit_coefs_kernel, units, arguments)
        if measures:
            launch(plan_rows_kernel, rows, arguments)
        launch(update_step_kernel, chunks, arguments)
        nobody = ~taking_part.any()
        _write(call.buffers.capped, self.memory["capped"], nobody)
        if by_units or call.settings.track_updates:
            self._share_updates(call, exchange, arguments["decision"], taking_part, nobody)
        return 3 + by_units + bool(units) + measures

    def captured(self) -> list[Tensor]:
        """What a graph holds the addresses of from now on."""
        self._one_unit.captured()
        return list(self.memory.values())

    def _link(self, rows: int, device: torch.device) -> None:
        known = self.memory.get("capped")
        if known is not None and known.numel() == rows and known.device == device:
            return
        kinds = {"norms": torch.float32, "abs_max": torch.float32, "nonfinite_of": torch.int64, "capped": torch.bool}
        self.memory = {name: torch.zeros(rows, dtype=dtype, device=device) for name, dtype in kinds.items()}
        self.memory["param_norms"] = torch.zeros(rows, dtype=torch.float64, device=device)
        for name in ("unit_norms", "update_norms"):
            self.memory[name] = torch.zeros(rows, 2, dtype=torch.float64, device=device)

    def _share(self, call: StepCall, exchange: Exchange, arguments: dict[str, Any], by_units: bool) -> Tensor:
        """Puts what is known of the whole rows into the arguments and buffers; returns which take part somewhere."""
        settings, buffers, memory = call.settings, call.buffers, self.memory
        mine = RowStats(
            norms=_norms(arguments["row_sums"], memory["abs_max"], memory["nonfinite_of"], settings),
            abs_max=torch.where(_taking_part(arguments["rows"]), memory["abs_max"], TAKES_NO_PART),
            nonfinite=memory["nonfinite_of"],
            params=arguments["param_norms"],
            units=(memory["unit_norms"][:, 0], memory["unit_norms"][:, 1]) if by_units else None,
        )
        whole, found_inf = exchange.share_stats(mine, arguments["found_inf"], settings.norm_type)
        taking_part = whole.taking_part
        somebody = taking_part.any()
        abs_max = whole.abs_max.clamp(min=0.0).float()
        arguments["found_inf"], arguments["somebody"] = found_inf.float(), somebody.int()
        # A norm is the root of one power of it, which is how kernels merge and read it.
        positive = whole.norms > 0
        arguments["row_sums"].copy_(torch.stack([positive, torch.where(positive, whole.norms, 1.0)]))
        arguments["row_counts"].copy_(torch.stack([abs_max.view(torch.int32).long() & 0x7FFFFFFF, whole.nonfinite]))
        arguments["roots"] = exchange.roots(abs_max.device)
        arguments["param_norms"] = whole.params
        arguments["unit_norms"] = None
        if whole.units is not None:
            one_unit = arguments["one_unit"][:, None] != 0
            arguments["unit_norms"] = torch.where(one_unit, torch.stack(whole.units, dim=1), -1.0)
        for buffer, values in (
            (buffers.norms, whole.norms),
            (buffers.abs_max, abs_max),
            (buffers.nonfinite, whole.nonfinite),
        ):
            _write(buffer, values, ~somebody)
        return taking_part

    def _share_updates(
        self, call: StepCall, exchange: Exchange, decision: Tensor, taking_part: Tensor, nobody: Tensor
    ) -> None:
        """How far the whole rows have moved and how large they are, and the smallest factor of a unit."""
        buffers, clip_coef, norms = call.buffers, call.buffers.stats.clip_coef, self.memory["update_norms"]
        moved, params, smallest = exchange.share_updates(norms[:, 0], norms[:, 1], clip_coef)
        clip_coef.copy_(smallest)
        if call.settings.track_updates:
            skip = decision[words.SKIP.value] != 0
            ratios = torch.where(taking_part & skip, torch.nan, update_ratio(moved, params))
            rms = params / exchange.roots(params.device)
            _write(buffers.update_ratio, ratios, nobody)
            _write(buffers.param_rms, torch.where(skip, buffers.param_rms, rms), nobody)


def _one_unit_rows(call: StepCall) -> list[int]:
    """Whether each row is one unit, of which processes may have parts, and is clipped as that."""
    return [int(row.param.ndim <= 1 and bool(call.groups[row.group].get("agc", True))) for row in call.rows]


def _taking_part(rows: Tensor) -> Tensor:
    return rows.view(-1, words.ROW_WORDS.value)[:, words.TAKES_PART.value] != 0


def _norms(sums: Tensor, abs_max: Tensor, nonfinite: Tensor, settings: Settings) -> Tensor:
    """Each row's norm from its sum of powers, as triton.math.norm_of."""
    total, power_scale = sums
    if math.isinf(settings.norm_type):
        norms = abs_max.double().clamp(max=math.inf if settings.clip_value is None else settings.clip_value)
    else:
        norms = total.pow(1.0 / settings.norm_type) * power_scale
    return torch.where(nonfinite > 0, abs_max.double(), norms)


def _write(buffer: Tensor, values: Tensor, nobody: Tensor) -> None:
    buffer.copy_(torch.where(nobody, buffer, values))
