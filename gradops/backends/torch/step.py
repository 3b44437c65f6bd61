"""A step in torch's own operations, on every device that torch has.

The last resort: same semantics and no waiting for the device, but temporaries of one parameter's size and dozens of
launches a parameter.
"""

import math

import torch
from torch import Tensor

from gradops.backends.call import Row, StepCall, state_of
from gradops.backends.checks import DTYPES
from gradops.backends.torch import agc as torch_agc
from gradops.backends.torch import math as torch_math
from gradops.backends.torch import rules
from gradops.backends.torch.guard import Verdict, decide_step
from gradops.backends.torch.math import GradStats
from gradops.backends.torch.rates import Sizes, limits_of, rates
from gradops.backends.torch.update import Options, Tensors, options_of, update_
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
        rows = [row for row in call.rows if row.grad is not None]
        stats = [
            torch_math.grad_stats(row.grad, inv_scale, settings.clip_value, settings.norm_type)
            for row in rows
            if row.grad is not None
        ]
        every = torch_math.merge(stats, settings.norm_type)
        found_inf = every.nonfinite > 0
        if call.found_inf is not None:
            found_inf = found_inf | (call.found_inf.reshape(()).to(device) != 0)
        verdict = decide_step(call, every.norm, found_inf)
        before = [widened(row.updated, copy=True) for row in rows if settings.track_updates]
        capped = self._update(call, rows, stats, inv_scale, verdict)
        write_scalars(call, verdict, scale)
        _write_rows(call, stats, capped)
        if settings.track_updates:
            _write_updates(call, rows, before, verdict.skip)

    def _update(
        self, call: StepCall, rows: list[Row], stats: list[GradStats], inv_scale: Tensor | None, verdict: Verdict
    ) -> list[Tensor]:
        """Moves parameters, moments and step counts unless the step is skipped; returns whose rate was capped.

        With clip_mode "agc" the verdict's clip_coef becomes the smallest factor.
        """
        coef, skip = verdict.clip_coef, verdict.skip
        capped: list[Tensor] = []
        of_groups = [options_of(self._rule, group) for group in call.groups]  # raises before anything is written
        for index, (group, options) in enumerate(zip(call.groups, of_groups, strict=True)):
            places = [place for place, row in enumerate(rows) if row.group == index]
            if not places:
                continue
            members = [rows[place] for place in places]
            limits = self._limits(call, members, [stats[place] for place in places], coef, options)
            lr, step, limited = rates(group["lr"], verdict.before.lr_factor, members, limits)
            capped += (limited & ~skip).unbind()
            coefs = self._update_rule.coefs([row.param for row in members], options.hyper, lr, step)
            names = self._rule.moments_of(group)
            for row, rate, coef_of_row in zip(members, lr, coefs, strict=True):
                assert row.grad is not None
                grad = torch_math.clamp(torch_math.unscale(row.grad, inv_scale), call.settings.clip_value)
                grad = grad * coef.to(grad.dtype)
                if call.settings.clip_mode == "agc" and group.get("agc", True) and grad.numel():
                    grad = _clipped_by_unit(call, row, grad, verdict)
                update_(self._update_rule, _tensors(row, names), grad, options, rate, coef_of_row, skip)
            steps = [state_of(row)["step"] for row in members]
            torch._foreach_add_(steps, [(~skip).float()] * len(steps))
        return capped

    def _limits(
        self, call: StepCall, members: list[Row], stats: list[GradStats], coef: Tensor, options: Options
    ) -> Tensor | None:
        """Of the rates of one group's rows; None without a cap."""
        cap = relative_step_cap(call.settings.max_relative_step)
        if cap is None:
            return None
        rms = torch.stack([_norm(row.updated) / _root_of_size(row) for row in members])
        if self._rule.scale_free:
            return limits_of(cap, members, Sizes(rms, None), options)
        grad_rms = [of_one.norm * coef / _root_of_size(row) for of_one, row in zip(stats, members, strict=True)]
        return limits_of(cap, members, Sizes(rms, torch.stack(grad_rms)), options)


def _clipped_by_unit(call: StepCall, row: Row, grad: Tensor, verdict: Verdict) -> Tensor:
    coefs = torch_agc.unit_coefs(row.updated, grad, call.settings.max_norm or math.inf)
    smallest = verdict.clip_coef.minimum(coefs.amin())
    verdict.clip_coef = torch.where(verdict.skip, verdict.clip_coef, smallest)
    return grad * coefs


def _root_of_size(row: Row) -> float:
    return max(1, row.param.numel()) ** 0.5


def _norm(values: Tensor) -> Tensor:
    return torch_math.grad_stats(values, None, None, 2.0).norm


def widened(values: Tensor, copy: bool = False) -> Tensor:
    """The values in the dtype of their arithmetic."""
    return values.to(torch_math.arithmetic_of(values), copy=copy)


def _tensors(row: Row, moments: tuple[str, ...]) -> Tensors:
    state = state_of(row)
    kept = [state[name] for name in moments]
    return Tensors(row.param, kept, state.get("master"), state.get("compensation"))


def write_scalars(call: StepCall, verdict: Verdict, scale: Tensor) -> None:
    """What the whole step measured and did, and the next values of the loss scale and the guard."""
    buffers, policy = call.buffers, loss_scale_policy(call.settings.loss_scale)
    following, tracker = buffers.current_scale, buffers.growth_tracker
    if isinstance(policy, DynamicLossScale):
        following, tracker = torch_math.next_loss_scale(following, tracker, policy, verdict.found_inf)
    guard, skip = verdict.next_guard(call.settings.guard), verdict.skip
    taken, skipped, *_ = buffers.counters.unbind()
    counters = torch.stack([taken + ~skip, skipped + skip, tracker, guard.norms_seen])
    step = [verdict.grad_norm.float(), verdict.clip_coef.float(), verdict.found_inf.float(), scale, following]
    guarding = [verdict.guarded.float(), verdict.before.lr_factor, guard.lr_factor, guard.usual_norm, guard.deviation]
    buffers.scalars.copy_(torch.stack([*step, *guarding]))
    buffers.counters.copy_(counters)


def _write_rows(call: StepCall, stats: list[GradStats], capped: list[Tensor]) -> None:
    """One row per parameter; zeros for those that took no part."""
    buffers = call.buffers
    for buffer, values in (
        (buffers.norms, [of_one.norm for of_one in stats]),
        (buffers.abs_max, [of_one.abs_max for of_one in stats]),
        (buffers.nonfinite, [of_one.nonfinite for of_one in stats]),
        (buffers.capped, capped),
    ):
        buffer.copy_(_row_of(call, values))


def _write_updates(call: StepCall, rows: list[Row], before: list[Tensor], skip: Tensor) -> None:
    norms = [_norm(row.updated) for row in rows]
    moved = [_norm(widened(row.updated) - values) for row, values in zip(rows, before, strict=True)]
    ratios = [torch_math.update_ratio(*pair) for pair in zip(moved, norms, strict=True)]
    call.buffers.update_ratio.copy_(_row_of(call, [torch.where(skip, torch.nan, ratio) for ratio in ratios]))
    rms = [norm / _root_of_size(row) for row, norm in zip(rows, norms, strict=True)]
    call.buffers.param_rms.copy_(torch.where(skip, call.buffers.param_rms, _row_of(call, rms)))


def _row_of(call: StepCall, values: list[Tensor]) -> Tensor:
    """The values of the rows that took part, among zeros for those that did not."""
    zero = torch.zeros((), dtype=values[0].dtype, device=values[0].device)
    rest = iter(values)
    return torch.stack([zero if row.grad is None else next(rest) for row in call.rows])
