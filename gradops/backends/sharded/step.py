"""A step of sharded parameters by the functional operators: measure, gather, decide, update."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Row, StepCall, state_of
from gradops.backends.checks import DTYPES
from gradops.backends.torch import math as torch_math
from gradops.backends.torch import ops as torch_ops
from gradops.backends.torch.guard import Verdict, decide_step
from gradops.backends.torch.rates import Sizes, limits_of, rates
from gradops.backends.torch.step import widened, write_scalars
from gradops.backends.torch.update import Options, options_of
from gradops.distributed.gather import Gathering
from gradops.settings import relative_step_cap
from gradops.update_rule import UpdateRule


@dataclass(slots=True)
class FullStats:
    """Statistics of the full parameters, the same on every process.

    Attributes:
        norms: in the wide dtype, one per row, as in those that follow; 0 for a row that takes no part.
        abs_max: float32.
        nonfinite: int64.
        grad_norm: in the wide dtype, 0-d, of all rows together.
        found_inf: bool, 0-d, whether any process saw an inf or NaN, now or before.
        rms: of the parameters, in the wide dtype; None where no cap asks for it.
    """

    norms: Tensor
    abs_max: Tensor
    nonfinite: Tensor
    grad_norm: Tensor
    found_inf: Tensor
    rms: Tensor | None


class MeshStep:
    """The backend of sharded parameters; its rows are local tensors.

    Args:
        ops: who has the operators of `gradops.ops`.
        rule: the update rule.
    """

    def __init__(self, ops: Any, rule: UpdateRule) -> None:
        self.DTYPES: tuple[torch.dtype, ...] = (*DTYPES, torch.float64) if ops is torch_ops else DTYPES
        self._ops, self._rule = ops, rule
        self._gathering: Gathering | None = None
        self._root_sizes = torch.zeros(0, dtype=torch.float32, device="cpu")
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._device = torch.device("cpu")

    def forget_rows(self) -> None:
        """`set_full_params` follows, if they are those of other parameters."""
        self._indices.clear()

    def set_full_params(self, params: list[Tensor], device: torch.device) -> None:
        """Takes the parameters that the rows are the local parts of."""
        self._gathering = Gathering(params)
        sizes = torch.tensor([param.numel() for param in params], dtype=torch_math.wide_dtype(device), device="cpu")
        self._root_sizes = sizes.clamp(min=1).sqrt().to(device)

    def description(self) -> str:
        """What ran the last step, for people."""
        ranks = len(self._gathering.ranks) if self._gathering else 0
        return f"{self._device}, operators on shards of {ranks} ranks, one gathering"

    def step(self, call: StepCall) -> None:
        """One step; see `gradops.backends.call`."""
        device = self._device = call.buffers.scalars.device
        one = torch.ones((), dtype=torch.float32, device=device)
        scale = one if call.loss_scale is None else call.loss_scale.reshape(()).to(device)
        divisor = scale.float() if call.loss_scale is not None and call.grads_scaled else None
        every = self._measure(call, divisor)
        verdict = decide_step(call, every.grad_norm, every.found_inf)
        rows = [row for row in call.rows if row.grad is not None]
        before = [widened(row.updated, copy=True) for row in rows if call.settings.track_updates]
        capped = self._update(call, every, divisor, verdict)
        write_scalars(call, verdict, scale)
        buffers = call.buffers
        buffers.norms.copy_(every.norms)
        buffers.abs_max.copy_(every.abs_max)
        buffers.nonfinite.copy_(every.nonfinite)
        buffers.capped.copy_(capped & ~verdict.skip)
        if call.settings.track_updates:
            self._write_updates(call, rows, before, verdict.skip)

    def _measure(self, call: StepCall, divisor: Tensor | None) -> FullStats:
        assert self._gathering is not None
        settings, device = call.settings, call.buffers.scalars.device
        part = self._index([index for index, row in enumerate(call.rows) if row.grad is not None], device)
        _, *of_rows = self._ops.grad_stats(
            [row.grad for row in call.rows if row.grad is not None], divisor, settings.clip_value, settings.norm_type
        )
        caps = settings.max_relative_step is not None
        if caps:
            of_rows.append(self._ops.grad_stats([row.updated for row in call.rows if row.grad is not None])[1])
        # Columns: the rows, then what others found before. Rows without a gradient travel too, as zeros, so that a
        # gathering has the same size everywhere.
        numbers = torch.zeros(3 + caps, len(call.rows) + 1, dtype=torch_math.wide_dtype(device), device=device)
        for line, values in zip(numbers, of_rows, strict=True):
            line[part] = values.to(numbers.dtype)
        if call.found_inf is not None:
            numbers[2, -1] = call.found_inf.reshape(()) != 0
        return self._merge(self._gathering.gather(numbers), settings.norm_type)

    def _write_updates(self, call: StepCall, rows: list[Row], before: list[Tensor], skip: Tensor) -> None:
        """How far the full parameters have moved, and their sizes; takes a second gathering."""
        assert self._gathering is not None
        buffers = call.buffers
        part = self._index([index for index, row in enumerate(call.rows) if row.grad is not None], skip.device)
        moved = [widened(row.updated) - values for row, values in zip(rows, before, strict=True)]
        numbers = torch.zeros(2, len(call.rows), dtype=torch_math.wide_dtype(skip.device), device=skip.device)
        for line, tensors in zip(numbers, (moved, [row.updated for row in rows]), strict=True):
            line[part] = self._ops.grad_stats(tensors)[1].to(numbers.dtype)
        gathered = torch.where(self._gathering.counts(skip.device)[:, None], self._gathering.gather(numbers), 0.0)
        moves, norms = (torch_math.merge_norms(gathered[:, line], 2.0) for line in range(2))
        ratios = torch.zeros_like(norms)
        ratios[part] = torch.where(skip, torch.nan, torch_math.update_ratio(moves, norms)[part])
        buffers.update_ratio.copy_(ratios)
        buffers.param_rms.copy_(torch.where(skip, buffers.param_rms, norms / self._root_sizes))

    def _index(self, part: list[int], device: torch.device) -> Tensor:
        """These rows as an index on the device, where they are copied to only once."""
        key = tuple(part)
        if key not in self._indices:
            self._indices[key] = torch.tensor(part, dtype=torch.int64, device=device)
        return self._indices[key]

    def _merge(self, gathered: Tensor, norm_type: float) -> FullStats:
        """From (ranks, lines, columns), as `_measure` hands them in, to what is true of the whole."""
        assert self._gathering is not None
        counts = self._gathering.counts(gathered.device)
        norms, abs_max, nonfinite = (gathered[:, line, :-1] for line in range(3))
        # On every replica, since an inf that has not been averaged with its replicas' values is one all the same.
        seen = (nonfinite > 0).any(0)
        abs_max = abs_max.amax(0)
        merged = torch_math.merge_norms(torch.where(counts, norms, 0.0), norm_type)
        norms = torch.where(seen, abs_max, merged)
        grad_norm = torch.where(seen.any(), abs_max.amax(), torch_math.merge_norms(norms, norm_type))
        rms = None
        if gathered.shape[1] > 3:
            rms = torch_math.merge_norms(torch.where(counts, gathered[:, 3, :-1], 0.0), 2.0) / self._root_sizes
        nonfinite = torch.where(counts, nonfinite, 0.0).sum(0).long()
        found_inf = (gathered[:, 2] > 0).any()
        return FullStats(norms, abs_max.float(), nonfinite, grad_norm, found_inf, rms)

    def _update(self, call: StepCall, every: FullStats, divisor: Tensor | None, verdict: Verdict) -> Tensor:
        """Moves parameters, moments and step counts unless the step is skipped; returns whose rate was capped."""
        capped = torch.zeros(len(call.rows), dtype=torch.bool, device=verdict.skip.device)
        shared = {
            "grad_scale": divisor,
            # Kernels read float32.
            "clip_coef": verdict.clip_coef if self._ops is torch_ops else verdict.clip_coef.float(),
            "found_inf": verdict.skip.float(),
            "clip_value": call.settings.clip_value,
        }
        of_groups = [options_of(self._rule, group) for group in call.groups]  # raises before anything is written
        for index, (group, options) in enumerate(zip(call.groups, of_groups, strict=True)):
            part = [i for i, row in enumerate(call.rows) if row.group == index and row.grad is not None]
            if not part:
                continue
            members = [call.rows[i] for i in part]
            place = self._index(part, verdict.skip.device)
            limits = self._limits(call, every, members, place, verdict.clip_coef, options)
            lr, _, capped[place] = rates(group["lr"], verdict.before.lr_factor, members, limits)
            # An operator's call has one rate.
            calls = [members] if limits is None else [[row] for row in members]
            for rows, rate in zip(calls, lr, strict=limits is not None):
                tensors = _tensors(rows, self._rule.moments_of(group))
                self._ops._update_(self._rule.name, *tensors, rate, **shared, **asdict(options))
            for row in members:
                if row.updated is not row.param:
                    row.param.copy_(row.updated)  # of a skipped step the same bits
        return capped

    def _limits(
        self, call: StepCall, every: FullStats, members: list[Row], place: Tensor, coef: Tensor, options: Options
    ) -> Tensor | None:
        """Of the rates of one group's rows; None without a cap."""
        cap = relative_step_cap(call.settings.max_relative_step)
        if cap is None or every.rms is None:
            return None
        grads = None if self._rule.scale_free else every.norms[place] * coef / self._root_sizes[place]
        return limits_of(cap, members, Sizes(every.rms[place], grads), options)


def _tensors(rows: list[Row], moments: tuple[str, ...]) -> list[list[Any]]:
    """The lists that `_update_` takes."""
    states = [state_of(row) for row in rows]
    of_rows = [state[name] for name in moments for state in states]
    return [[row.updated for row in rows], [row.grad for row in rows], of_rows, [state["step"] for state in states]]
