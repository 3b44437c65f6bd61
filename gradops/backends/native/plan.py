"""The door to the native step: `gradops._C.StepPlan` with the interface of `gradops.backends.plan.StepPlan`."""

import math
from itertools import chain
from typing import Any

from torch import Tensor

from gradops import _C
from gradops.distributed.gather import Gathering
from gradops.distributed.shards import is_sharded, local_grad, local_tensor
from gradops.policies.loss_scale import DynamicLossScale
from gradops.policies.spike_guard import SpikeGuard
from gradops.settings import Settings, loss_scale_policy, relative_step_cap
from gradops.stats import StepBuffers
from gradops.update_rule import UpdateRule


class NativePlan(_C.StepPlan):
    """A `_C.StepPlan` that takes this package's rules, buffers and settings."""

    def __init__(self, rule: UpdateRule) -> None:
        moments = [(moment.name, moment.because) for moment in rule.moments]
        scalars = [scalar.name for scalar in rule.scalars]
        super().__init__(rule.name, moments, scalars, list(rule.hyper), rule.decoupled_key or "", rule.always_decouples)
        self._params: list[Tensor] = []  # those of the exchange
        self._gathering: Gathering | None = None
        self._exchange: _C.Exchange | None = None

    def bind_params(  # type: ignore[override]
        self, param_groups: list[dict[str, Any]], names: tuple[str, ...], buffers: StepBuffers
    ) -> None:
        """As `gradops.backends.plan.StepPlan.bind_params`; some parameters may be DTensors."""
        params = list(chain.from_iterable(group["params"] for group in param_groups))
        if list(map(id, params)) != list(map(id, self._params)):
            self._gathering = Gathering(params) if any(map(is_sharded, params)) else None
            self._exchange = None if self._gathering is None else _exchange(self._gathering)
            self._params = params
        super().bind_params(param_groups, names, buffers.all(), self._exchange)

    def description(self) -> str:
        """What runs the steps, for people."""
        device = super().description()
        return device if self._gathering is None else f"{device}, shards of {len(self._gathering.ranks)} ranks"

    @staticmethod
    def prepare(settings: Settings) -> _C.StepSettings:
        """What `step` takes of these settings, which have been checked."""
        cap = relative_step_cap(settings.max_relative_step)
        return _C.StepSettings(
            max_norm=math.inf if settings.max_norm is None else settings.max_norm,
            norm_type=settings.norm_type,
            clip_value=math.inf if settings.clip_value is None else settings.clip_value,
            relative_step=None if cap is None else _C.RelativeStepPolicy(cap.cap, cap.floor, cap.warmup_steps),
            loss_scale_policy=_native_loss_scale(loss_scale_policy(settings.loss_scale)),
            guard=_native_guard(settings.guard),
            track_updates=settings.track_updates,
            l1=settings.l1,
            agc=settings.clip_mode == "agc",
            ema=None if settings.ema is None else _C.EmaPolicy(*settings.ema.numbers),
        )


def _exchange(gathering: Gathering) -> _C.Exchange:
    from torch.distributed.tensor import DTensor

    return _C.Exchange(
        DTensor, local_tensor, local_grad, gathering.gather, gathering.counts, processes=len(gathering.ranks)
    )


def _native_loss_scale(policy: None | float | DynamicLossScale) -> _C.LossScalePolicy | None:
    if not isinstance(policy, DynamicLossScale):
        return None
    return _C.LossScalePolicy(
        growth_factor=policy.growth_factor,
        backoff_factor=policy.backoff_factor,
        growth_interval=policy.growth_interval,
        min_scale=policy.min_scale,
        max_scale=policy.max_scale,
    )


def _native_guard(guard: SpikeGuard | None) -> _C.SpikeGuardPolicy | None:
    if guard is None:
        return None
    return _C.SpikeGuardPolicy(
        ratio=guard.ratio,
        z_score=guard.z_score,
        skips=guard.skips,
        lr_cut=guard.lr_cut,
        lr_growth=guard.lr_growth,
        min_lr_factor=guard.min_lr_factor,
        history=guard.history,
        warmup_steps=guard.warmup_steps,
    )
