"""What the modules for other frameworks share."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from gradops.backends.checks import DTYPES
from gradops.backends.sharded.clip import clip_sharded_grads_
from gradops.distributed.shards import full_tensor, is_sharded
from gradops.one_pass.clip import grad_norm
from gradops.one_pass.grad_scaler import GradScaler
from gradops.one_pass.groups import params_of
from gradops.one_pass.one_pass import OnePass
from gradops.settings import Settings


@contextmanager
def needs(framework: str, extra: str = "frameworks") -> Iterator[None]:
    """Around a module's imports from a framework: names the extra that installs it where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"gradops.{framework} needs {error.name}: run pip install 'gradops[{extra}]'", name=error.name
        ) from error


@contextmanager
def settings_for(optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Iterator[None]:
    """The optimizer has other settings for a while; its own come back, whatever happens."""
    own = {name: getattr(optimizer, name) for name in settings}
    vars(optimizer).update(settings)
    try:
        yield
    finally:
        vars(optimizer).update(own)


def settings_with(settings: dict[str, Any], model: torch.nn.Module | None) -> dict[str, Any]:
    """A door's settings as `gradops.wrap` takes them: `protect=True` means the model that the framework trains."""
    return {**settings, "protect": model} if settings.get("protect") is True else settings


def check_settings(settings: dict[str, Any]) -> None:
    """Refuses settings that `gradops.wrap` would refuse, before there is a model.

    Raises:
        ValueError, TypeError: a setting is out of its range.
    """
    Settings(**settings_with(settings, None)).checked()


def name_params(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> bool:
    """Puts the model's names for the parameters where `stats.names` takes them from; returns whether it did."""
    names = {param: name for name, param in model.named_parameters()}
    if any("param_names" in group for group in optimizer.param_groups):
        return False
    if any(param not in names for param in params_of(optimizer.param_groups)):
        return False
    for group in optimizer.param_groups:
        group["param_names"] = [names[param] for param in group["params"]]
    return True


def one_pass_scaler(scaler: Any) -> Any:
    """A `gradops.GradScaler` in the place of torch's, in its state; any other stays, and one that is disabled."""
    if type(scaler) is not torch.amp.GradScaler or not scaler.is_enabled():
        return scaler
    ours = GradScaler(
        scaler._device,
        scaler._init_scale,
        scaler.get_growth_factor(),
        scaler.get_backoff_factor(),
        scaler.get_growth_interval(),
    )
    ours.load_state_dict(scaler.state_dict())
    return ours


def clips_in_its_step(
    optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor], settings: dict[str, float]
) -> bool:
    """Whether the optimizer's step clips the parameters' gradients as the settings say.

    They must be the optimizer's: its own, no more and no fewer. A step can clip to no 0, and with `clip_mode="agc"` its
    `max_norm` is something else.
    """
    if not isinstance(optimizer, OnePass) or not all(value > 0 for value in settings.values()):
        return False
    if "max_norm" in settings and optimizer.clip_mode == "agc":
        return False
    with_grad = {param for param in parameters if param.grad is not None}
    return with_grad == {param for param in params_of(optimizer.param_groups) if param.grad is not None}


def grad_scale_of(optimizer: OnePass, scaler: torch.amp.GradScaler | None) -> Tensor | None:
    """What the gradients are multiplied by now, before the step: by a scaler or by the optimizer's own scale.

    Raises:
        RuntimeError: the optimizer has a loss scale, but no loss was scaled.
    """
    if scaler is None or not scaler.is_enabled() or optimizer.loss_scale is not None:
        scale, carried, _ = optimizer.engine.scaling.of_step(optimizer)
        return scale if carried else None
    unscaled = scaler._per_optimizer_states[id(optimizer)]["stage"] is OptState.UNSCALED
    return None if unscaled else scaler._scale


@torch.no_grad()
def measured_norm(optimizer: OnePass, grad_scale: Tensor | None, clip_value: float | None, norm_type: float) -> Tensor:
    """The norm that the optimizer's next step would clip by, of the gradients as they are now."""
    grads = [param.grad for param in params_of(optimizer.param_groups) if param.grad is not None]
    if grads and all(type(g) is Tensor and g.layout == torch.strided and g.dtype in DTYPES for g in grads):
        return torch.ops.gradops.grad_stats(grads, grad_scale, clip_value, norm_type)[0]
    if clip_value is not None:
        limit = _limit(clip_value, grad_scale)
        grads = [grad.clamp(-limit, limit) for grad in grads]
    if any(map(is_sharded, grads)):
        norm = full_tensor(clip_sharded_grads_(grads, math.inf, norm_type, error_if_nonfinite=False))
    else:
        norm = grad_norm(grads, norm_type, fused=False) if grads else torch.zeros((), dtype=torch.float32, device="cpu")
    return norm if grad_scale is None else norm / grad_scale.to(norm.device)


@torch.no_grad()
def clip_now_(
    optimizer: OnePass,
    grad_scale: Tensor | None,
    *,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    clip_value: float | None = None,
) -> None:
    """Clips the gradients themselves, where they are, as a step with these settings would."""
    grads = [param.grad for param in params_of(optimizer.param_groups) if param.grad is not None]
    if clip_value is not None:
        limit = _limit(clip_value, grad_scale)
        for grad in grads:
            grad.clamp_(-limit, limit)
    if max_norm is not None and grads:
        norm = measured_norm(optimizer, grad_scale, None, norm_type)
        coef = torch.where(norm.isfinite(), (max_norm / (norm + 1e-6)).clamp(max=1.0), 1.0)
        for grad in grads:
            grad.mul_(coef.to(grad.dtype))


def _limit(clip_value: float, grad_scale: Tensor | None) -> Any:
    """What a gradient's element is clamped to that is multiplied by the scale."""
    return clip_value if grad_scale is None else clip_value * grad_scale
