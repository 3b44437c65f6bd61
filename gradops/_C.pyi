"""What the native extension offers to Python."""

from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor, device

class BuildInfo(TypedDict):
    compiler: str
    torch: str
    built_for: str
    cuda: bool

def build_info() -> BuildInfo: ...
def has_backend(device: str) -> bool: ...
def update_rules() -> list[str]: ...
def launch_form(device: str) -> str: ...
def allow_one_launch(allowed: bool) -> bool: ...
def cpu_capability() -> str: ...
def set_cpu_capability(name: str) -> str: ...

class LossScalePolicy:
    def __init__(
        self, growth_factor: float, backoff_factor: float, growth_interval: int, min_scale: float, max_scale: float
    ) -> None: ...

class RelativeStepPolicy:
    def __init__(self, cap: float, floor: float, warmup_steps: int) -> None: ...

class SpikeGuardPolicy:
    def __init__(
        self,
        ratio: float,
        z_score: float,
        skips: bool,
        lr_cut: float,
        lr_growth: float,
        min_lr_factor: float,
        history: int,
        warmup_steps: int,
    ) -> None: ...

class EmaPolicy:
    def __init__(
        self,
        decay: float,
        min_decay: float,
        inv_gamma: float,
        power: float,
        tau: float,
        start: float,
        every: float,
    ) -> None: ...

class StepSettings:
    def __init__(
        self,
        max_norm: float,
        norm_type: float,
        clip_value: float,
        relative_step: RelativeStepPolicy | None,
        loss_scale_policy: LossScalePolicy | None,
        guard: SpikeGuardPolicy | None,
        track_updates: bool,
        l1: float,
        agc: bool,
        ema: EmaPolicy | None,
    ) -> None: ...

class Exchange:
    def __init__(
        self,
        dtensor: type,
        local_tensor: Callable[[Tensor], Tensor],
        local_grad: Callable[[Tensor], Tensor | None],
        gather: Callable[[Tensor, str, float], Tensor],
        counts: Callable[[device], Tensor],
        processes: int,
    ) -> None: ...

class StepPlan:
    def __init__(
        self,
        rule: str,
        moments: list[tuple[str, str]],
        scalars: list[str],
        hyper: list[str],
        decoupled: str,
        always_decouples: bool,
    ) -> None: ...
    def bind_params(
        self,
        param_groups: list[dict[str, Any]],
        names: tuple[str, ...],
        buffers: tuple[Tensor, ...],
        exchange: Exchange | None = None,
    ) -> None: ...
    def bind_state(self, state: dict[Tensor, Any]) -> None: ...
    def params_without_state(self) -> list[int]: ...
    def step(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        settings: StepSettings,
        loss_scale: Tensor | None,
        grads_scaled: bool,
        found_inf: Tensor | None,
    ) -> bool: ...
    def description(self) -> str: ...
    def refresh(self) -> None: ...
