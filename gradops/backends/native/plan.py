"""The door to the native step: `gradops._C.StepPlan` with the interface of `gradops.backends.plan.StepPlan`."""

import math
from typing import Any

from gradops import _C
from gradops.policies.loss_scale import DynamicLossScale
from gradops.policies.spike_guard import SpikeGuard
from gradops.settings import Settings, loss_scale_policy, relative_step_cap
from gradops.stats import StepBuffers
from gradops.update_rule import UpdateRule


class NativePlan(_C.StepPlan):
    """A `_C.StepPlan` that takes this package's rules, buffers and settings."""

    def __init__(self, rule: UpdateRule) -> None:
        moments = [(moment.name, moment.because) for moment in rule.moments]
        super().__init__(rule.name, moments, list(rule.hyper), rule.decoupled_key or "")

    def bind_params(  # type: ignore[override]
        self, param_groups: list[dict[str, Any]], names: tuple[str, ...], buffers: StepBuffers
    ) -> None:
        """As `gradops.backends.plan.StepPlan.bind_params`."""
        super().bind_params(param_groups, names, buffers.all())

    @staticmethod
    def prepare(settings: Settings) -> _C.StepSettings:
        """What `step` takes of these settings, which have been checked."""
        cap = relative_step_cap(settings.max_relative_step)
        return _C.StepSettings(
            max_norm=math.inf if settings.max_norm is None else settings.max_norm,
            norm_type=settings.norm_type,
            clip_value=math.inf if settings.clip_value is None else settings.clip_value,
            relative_step=None if cap is None else _C.RelativeStepRule(cap.cap, cap.floor, cap.warmup_steps),
            loss_scale_rule=_loss_scale_rule(loss_scale_policy(settings.loss_scale)),
            guard=_guard_rule(settings.guard),
            track_updates=settings.track_updates,
            l1=settings.l1,
            agc=settings.clip_mode == "agc",
        )


def _loss_scale_rule(policy: None | float | DynamicLossScale) -> _C.LossScaleRule | None:
    if not isinstance(policy, DynamicLossScale):
        return None
    return _C.LossScaleRule(
        growth_factor=policy.growth_factor,
        backoff_factor=policy.backoff_factor,
        growth_interval=policy.growth_interval,
        min_scale=policy.min_scale,
        max_scale=policy.max_scale,
    )


def _guard_rule(guard: SpikeGuard | None) -> _C.SpikeGuardRule | None:
    if guard is None:
        return None
    return _C.SpikeGuardRule(
        ratio=guard.ratio,
        z_score=guard.z_score,
        skips=guard.skips,
        lr_cut=guard.lr_cut,
        lr_growth=guard.lr_growth,
        min_lr_factor=guard.min_lr_factor,
        history=guard.history,
        warmup_steps=guard.warmup_steps,
    )
