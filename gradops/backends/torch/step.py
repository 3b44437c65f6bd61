"""A step in torch's own operations, on every device that torch has.

The last resort: same semantics and no waiting for the device, but temporaries of one parameter's size and dozens of
launches a parameter.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Row, StepCall, state_of
from gradops.backends.checks import DTYPES
from gradops.backends.torch import agc as torch_agc
from gradops.backends.torch import math as torch_math
from gradops.backends.torch import rules
from gradops.backends.torch.ema import average_rows_
from gradops.backends.torch.guard import Verdict, decide_step
from gradops.backends.torch.measure import Measured, measure, norm, row_of
from gradops.backends.torch.rates import Rates, Sizes, lr_of, rates
from gradops.backends.torch.update import Options, Tensors, move_scalars_, options_of, update_, values_of
from gradops.policies.loss_scale import DynamicLossScale
from gradops.settings import loss_scale_policy, relative_step_cap
from gradops.update_rule import UpdateRule


class TorchStep:
    """The torch backend.

    Args:
        rule: the update rule.
        reason: why it was chosen, for people.
    """

    DTYPES: tuple[torch.dtype, ...] = (*DTYPES, torch.float64)

    def __init__(self, rule: UpdateRule, reason: str) -> None:
        self._rule, self._reason = rule, reason
        self._update_rule = rules.load(rule.name)

    def forget_rows(self) -> None:
        """Nothing is kept from step to step."""

    def description(self) -> str:
        """What ran the last step, for people."""
        return f"torch's own operations, since {self._reason}"

    def step(self, call: StepCall) -> None:
        """One step; see `gradops.backends.call`."""
        settings, device = call.settings, call.buffers.scalars.device
        one = torch.ones((), dtype=torch.float32, device=device)
        scale = one if call.loss_scale is None else call.loss_scale.reshape(()).to(device)
        scaled = call.loss_scale is not None and call.grads_scaled
        inv_scale = torch_math.inv_loss_scale(scale) if scaled else None
        # Raises before other processes are told anything, and before anything is written.
        options = [(options_of(self._rule, group), lr_of(group)) for group in call.groups]
        every = measure(call, self._rule, inv_scale)
        verdict = decide_step(call, every.grad_norm, every.found_inf)
        before = {
            index: widened(row.updated, copy=True)
            for index, row in enumerate(call.rows)
            if settings.track_updates and row.grad is not None
        }
        capped = self._update(call, options, every, inv_scale, verdict)
        if settings.track_updates or (call.exchange is not None and settings.clip_mode == "agc"):
            _learn_updates(call, every, before, verdict)
        write_scalars(call, verdict, scale, every.nobody)
        _write_rows(call, every, capped)

    def _update(
        self,
        call: StepCall,
        of_groups: list[tuple[Options, float | Tensor]],
        every: Measured,
        inv_scale: Tensor | None,
        verdict: Verdict,
    ) -> dict[int, Tensor]:
        """Moves parameters, moments and step counts unless the step is skipped; returns whose rate was capped.

        With clip_mode "agc" the verdict's clip_coef becomes the smallest factor.
        """
        capped: dict[int, Tensor] = {}
        coef = verdict.clip_coef
        for at, (group, (options, lr)) in enumerate(zip(call.groups, of_groups, strict=True)):
            part = [index for index, row in enumerate(call.rows) if row.group == at and row.grad is not None]
            if not part:
                continue
            members = [call.rows[index] for index in part]
            sizes = _sizes_of(call, part, every, coef) if every.params else None
            planned = self._rates(call, part, options, lr, sizes, verdict)
            capped.update(zip(part, (planned.capped & ~verdict.skip).unbind(), strict=True))
            scalars = [state_of(row)[scalar.name] for scalar in self._rule.scalars for row in members]
            values = values_of(scalars)
            of_rows = self._by_row(members, options, planned, values)
            for index, row, (rate, coefs, factor) in zip(part, members, of_rows, strict=True):
                assert row.grad is not None
                grad = torch_math.clamp(torch_math.unscale(row.grad, inv_scale), call.settings.clip_value)
                grad = grad * coef.to(grad.dtype)
                if call.settings.clip_mode == "agc" and group.get("agc", True) and grad.numel():
                    grad = _clipped_by_unit(call, row, grad, verdict, coef, every.units.get(index))
                tensors = _tensors(row, self._rule.moments_of(group))
                update_(self._update_rule, tensors, grad, options, rate, coefs, factor, verdict.skip)
            average_rows_(call.settings.ema, members, planned.step, verdict.skip)
            steps = [state_of(row)["step"] for row in members]
            torch._foreach_add_(steps, [(~verdict.skip).float()] * len(steps))
            move_scalars_(self._update_rule, scalars, values, options.hyper, planned.step, verdict.skip)
        return capped

    def _rates(
        self,
        call: StepCall,
        part: list[int],
        options: Options,
        lr: float | Tensor,
        sizes: Sizes | None,
        verdict: Verdict,
    ) -> Rates:
        """Of the rows of one group, whose indices are `part`."""
        cap, members = relative_step_cap(call.settings.max_relative_step), [call.rows[index] for index in part]
        return rates(self._rule, self._update_rule, lr, verdict.before.lr_factor, members, options, cap, sizes)

    def _by_row(
        self, members: list[Row], options: Options, planned: Rates, scalars: list[Tensor]
    ) -> Iterator[tuple[Tensor, Any, Tensor | None]]:
        """Of each row its rate, the rule's coefficients, and what its gradient is multiplied by."""
        params = [row.param for row in members]
        coefs = self._update_rule.coefs(params, options.hyper, planned.lr, planned.step, *scalars)
        found = planned.grad_factors
        factors: Sequence[Tensor | None] = [None] * len(members) if found is None else found.unbind()
        return zip(planned.lr, coefs, factors, strict=True)


def _clipped_by_unit(
    call: StepCall, row: Row, grad: Tensor, verdict: Verdict, coef: Tensor, whole: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The gradient, which `coef` has clipped; `whole` has the norms of what processes have parts of."""
    norms = None if whole is None else (whole[0] * coef, whole[1])
    coefs = torch_agc.unit_coefs(row.updated, grad, call.settings.max_norm or math.inf, norms)
    smallest = verdict.clip_coef.minimum(coefs.amin())
    verdict.clip_coef = torch.where(verdict.skip, verdict.clip_coef, smallest)
    return grad * coefs


def _sizes_of(call: StepCall, part: list[int], every: Measured, coef: Tensor) -> Sizes:
    roots = [_root_of_size(call, index) for index in part]
    return Sizes(
        torch.stack([every.params[index] / root for index, root in zip(part, roots, strict=True)]),
        torch.stack([every.grads[index].norm * coef / root for index, root in zip(part, roots, strict=True)]),
        torch.stack([torch.full_like(coef, root) for root in roots]),
    )


def _root_of_size(call: StepCall, index: int) -> float:
    return max(1, call.numel(index)) ** 0.5


def widened(values: Tensor, copy: bool = False) -> Tensor:
    """The values in the dtype of their arithmetic."""
    return values.to(torch_math.arithmetic_of(values), copy=copy)


def _tensors(row: Row, moments: tuple[str, ...]) -> Tensors:
    state = state_of(row)
    kept = [state[name] for name in moments]
    return Tensors(row.param, kept, state.get("master"), state.get("compensation"))


def write_scalars(call: StepCall, verdict: Verdict, scale: Tensor, nobody: Tensor | None) -> None:
    """What the whole step measured and did, and the next values of the loss scale and the guard.

    Nothing is written where `nobody`, as the functions below take it from `Measured`, says that there was no step.
    """
    buffers, policy = call.buffers, loss_scale_policy(call.settings.loss_scale)
    following, tracker = buffers.current_scale, buffers.growth_tracker
    if isinstance(policy, DynamicLossScale):
        following, tracker = torch_math.next_loss_scale(following, tracker, policy, verdict.found_inf)
    guard, skip = verdict.next_guard(call.settings.guard), verdict.skip
    taken, skipped, *_ = buffers.counters.unbind()
    counters = torch.stack([taken + ~skip, skipped + skip, tracker, guard.norms_seen])
    step = [verdict.grad_norm.float(), verdict.clip_coef.float(), verdict.found_inf.float(), scale, following]
    guarding = [verdict.guarded.float(), verdict.before.lr_factor, guard.lr_factor, guard.usual_norm, guard.deviation]
    _write(buffers.scalars, torch.stack([*step, *guarding]), nobody)
    _write(buffers.counters, counters, nobody)


def _write(buffer: Tensor, values: Tensor, nobody: Tensor | None) -> None:
    buffer.copy_(values if nobody is None else torch.where(nobody, buffer, values))


def _write_rows(call: StepCall, every: Measured, capped: dict[int, Tensor]) -> None:
    """One row per parameter; zeros for those that took no part."""
    buffers, stats = call.buffers, every.grads.items()
    for buffer, values in (
        (buffers.norms, {index: of_one.norm for index, of_one in stats}),
        (buffers.abs_max, {index: of_one.abs_max for index, of_one in stats}),
        (buffers.nonfinite, {index: of_one.nonfinite for index, of_one in stats}),
        (buffers.capped, capped),
    ):
        _write(buffer, row_of(call, values), every.nobody)


def _learn_updates(call: StepCall, every: Measured, before: dict[int, Tensor], verdict: Verdict) -> None:
    """How far the rows have moved and how large they are now; of all processes' parts, and the smallest factor, too."""
    moved = {index: norm(widened(call.rows[index].updated) - values) for index, values in before.items()}
    norms = {index: norm(call.rows[index].updated) for index in before}
    if call.exchange is not None:
        whole = call.exchange.share_updates(row_of(call, moved), row_of(call, norms), verdict.clip_coef)
        verdict.clip_coef = whole[2]
        moved, norms = (dict(enumerate(values.unbind())) for values in whole[:2])
    if not call.settings.track_updates:
        return
    buffers, skip = call.buffers, verdict.skip
    ratios = row_of(call, {index: torch_math.update_ratio(moved[index], norms[index]) for index in norms})
    part = every.taking_part
    if part is None:
        part = row_of(call, {index: torch.ones_like(skip) for index in before})
    _write(buffers.update_ratio, torch.where(part & skip, torch.nan, ratios), every.nobody)
    rms = row_of(call, {index: value / _root_of_size(call, index) for index, value in norms.items()})
    _write(buffers.param_rms, torch.where(skip, buffers.param_rms, rms), every.nobody)
