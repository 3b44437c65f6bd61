"""What a step in torch's operations knows of its rows before it decides: of this process's, or of the whole ones."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradops.backends.call import StepCall
from gradops.backends.sharded.exchange import TAKES_NO_PART, Exchange, RowStats
from gradops.backends.torch import math as torch_math
from gradops.backends.torch.agc import unit_norms
from gradops.backends.torch.math import GradStats
from gradops.update_rule import UpdateRule


@dataclass(slots=True)
class Measured:
    """Statistics by the index of the row: of those with a gradient, or after an exchange of all.

    Attributes:
        grads: of the gradients.
        grad_norm: 0-d, in the wide dtype, of all of them.
        found_inf: 0-d, bool, whether anybody has seen an inf or NaN.
        params: L2 norms of what is updated, where the step compares them.
        units: L2 norms of gradient and of what is updated, for rows of which processes have parts of one unit.
        taking_part: bool, whether each row has a gradient somewhere; only after an exchange.
    """

    grads: dict[int, GradStats]
    grad_norm: Tensor
    found_inf: Tensor
    params: dict[int, Tensor] = field(default_factory=dict)
    units: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    taking_part: Tensor | None = None

    @property
    def nobody(self) -> Tensor | None:
        """0-d, bool, whether no row has a gradient on any process; None where one has."""
        return None if self.taking_part is None else ~self.taking_part.any()


def measure(call: StepCall, rule: UpdateRule, inv_scale: Tensor | None) -> Measured:
    """Measures the rows; with an exchange every process must call it."""
    settings = call.settings
    grads = {
        index: torch_math.grad_stats(row.grad, inv_scale, settings.clip_value, settings.norm_type)
        for index, row in enumerate(call.rows)
        if row.grad is not None
    }
    params = {index: norm(call.rows[index].updated) for index in grads if settings.measures_params(rule)}
    if call.exchange is not None:
        return _shared(call, call.exchange, rule, inv_scale, grads, params)
    every = torch_math.merge(list(grads.values()), settings.norm_type)
    found_inf = every.nonfinite > 0
    if call.found_inf is not None:
        found_inf = found_inf | (call.found_inf.reshape(()).to(found_inf.device) != 0)
    return Measured(grads, every.norm, found_inf, params)


def _shared(
    call: StepCall,
    exchange: Exchange,
    rule: UpdateRule,
    inv_scale: Tensor | None,
    grads: dict[int, GradStats],
    params: dict[int, Tensor],
) -> Measured:
    settings = call.settings
    mine = RowStats(
        norms=row_of(call, {index: stats.norm for index, stats in grads.items()}),
        abs_max=row_of(call, {index: stats.abs_max for index, stats in grads.items()}, TAKES_NO_PART),
        nonfinite=row_of(call, {index: stats.nonfinite for index, stats in grads.items()}),
        params=row_of(call, params) if settings.measures_params(rule) else None,
    )
    if settings.clip_mode == "agc":
        mine.units = _units(call, inv_scale)
    whole, found_inf = exchange.share_stats(mine, call.found_inf, settings.norm_type)
    columns = whole.norms, whole.abs_max.clamp(min=0.0), whole.nonfinite
    stats = [GradStats(*values) for values in zip(*(column.unbind() for column in columns), strict=True)]
    every = torch_math.merge(stats, settings.norm_type)
    result = Measured(dict(enumerate(stats)), every.norm, found_inf, taking_part=whole.taking_part)
    if whole.params is not None:
        result.params = dict(enumerate(whole.params.unbind()))
    if whole.units is not None:
        pairs = zip(*(norms.unbind() for norms in whole.units), strict=True)
        result.units = {index: pair for index, pair in enumerate(pairs) if call.rows[index].param.ndim <= 1}
    return result


def _units(call: StepCall, inv_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """The norms of this process's parts of rows that are one unit."""
    grads, params = {}, {}
    for index, row in enumerate(call.rows):
        if row.grad is not None and row.param.ndim <= 1 and call.groups[row.group].get("agc", True):
            grad = torch_math.clamp(torch_math.unscale(row.grad, inv_scale), call.settings.clip_value)
            grads[index], params[index] = unit_norms(grad), unit_norms(row.updated)
    return row_of(call, grads), row_of(call, params)


def norm(values: Tensor) -> Tensor:
    """The L2 norm in the wide dtype."""
    return torch_math.grad_stats(values, None, None, 2.0).norm


def row_of(call: StepCall, values: dict[int, Tensor], rest: float = 0.0) -> Tensor:
    """The values of the rows that have one, in the order of all, and `rest` for the others."""
    device = call.buffers.scalars.device
    first = next(iter(values.values()), None)
    dtype = torch_math.wide_dtype(device) if first is None else first.dtype
    other = torch.full((), rest, dtype=dtype, device=device)
    return torch.stack([values.get(index, other) for index in range(len(call.rows))])
