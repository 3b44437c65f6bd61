"""`dispatch_clip_grad` in place of timm.utils.dispatch_clip_grad: leaves the clipping to the optimizer's next step."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from timm import utils
from torch import Tensor

from gradops._frameworks import settings_for
from gradops.one_pass.groups import param_names, params_of
from gradops.one_pass.known_optimizers import alive
from gradops.one_pass.one_pass import OnePass
from gradops.settings import settings_of

# timm's own, also where this module is imported a second time.
_now: Any = utils.clip_grad.dispatch_clip_grad
timms_dispatch: Callable[..., None] = getattr(_now, "timms", _now)

_CHANGED = (
    "the gradients were changed after dispatch_clip_grad, which had left the clipping to this optimizer's step; call "
    "dispatch_clip_grad after whatever changes gradients, as the last thing before step()"
)


@dataclass(frozen=True)
class Clip:
    """A clipping that an optimizer's step does itself.

    Attributes:
        optimizer: whose step.
        settings: those that clip so.
        clipped: the parameters, where the step is to spare the optimizer's others; None where it has no others.
    """

    optimizer: OnePass
    settings: dict[str, Any]
    clipped: frozenset[Tensor] | None

    @contextmanager
    def active(self) -> Iterator[None]:
        """The optimizer's steps clip so."""
        with settings_for(self.optimizer, self.settings), _groups_clipping(self.optimizer, self.clipped):
            yield


@contextmanager
def _groups_clipping(optimizer: OnePass, clipped: frozenset[Tensor] | None) -> Iterator[None]:
    """The optimizer's groups are split, in their order, into parts that "agc" clips and parts that it spares."""
    if clipped is None:
        yield
        return
    own, names = optimizer.param_groups, iter(param_names(optimizer.param_groups))
    vars(optimizer)["param_groups"] = parts = []
    for group in own:
        named = [(param, next(names)) for param in group["params"]]
        for clips, part in groupby(named, key=lambda pair: pair[0] in clipped):
            params, part_names = zip(*part, strict=True)
            parts.append({**group, "params": list(params), "param_names": list(part_names), "agc": clips})
    try:
        yield
    finally:
        vars(optimizer)["param_groups"] = own


def clip_in_step(optimizer: Any, parameters: list[Tensor], value: Any, mode: str, norm_type: float) -> Clip | None:
    """What has the optimizer's step clip these parameters as timm would; None where it cannot.

    They must be all of the optimizer's that have a gradient, or with "agc" some of them, and nothing that the optimizer
    clips by itself may come in between.
    """
    if not isinstance(optimizer, OnePass) or not isinstance(value, (int, float)):
        return None
    asked = {param for param in parameters if param.grad is not None}
    of_optimizer = {param for param in params_of(optimizer.param_groups) if param.grad is not None}
    if not asked or not (asked <= of_optimizer if mode == "agc" else asked == of_optimizer):
        return None
    settings = _settings(optimizer, float(value), mode, float(norm_type))
    if settings is None:
        return None
    try:
        replace(settings_of(optimizer), **settings).checked(optimizer.rule)
    except ValueError:  # to 0, for one, or "agc" for LARS, which needs a clipped gradient's norm before its update
        return None
    return Clip(optimizer, settings, frozenset(asked) if mode == "agc" else None)


def _settings(optimizer: OnePass, value: float, mode: str, norm_type: float) -> dict[str, Any] | None:
    """The settings by which a step clips so, and then as the optimizer's own say; None where none do."""
    by_norm, by_value = optimizer.max_norm, optimizer.clip_value
    if mode == "value":
        return {"clip_value": value if by_value is None else min(value, by_value)}
    if by_value is not None:
        return None  # the step clamps first
    if mode == "norm" and (by_norm is None or (optimizer.clip_mode, optimizer.norm_type) == ("norm", norm_type)):
        return {"max_norm": value if by_norm is None else min(value, by_norm), "norm_type": norm_type}
    if mode == "agc" and norm_type == 2.0 and by_norm is None:
        return {"max_norm": value, "clip_mode": "agc"}
    return None


class _AtNextStep:
    """A clipping that the optimizer's next step does, if the gradients are then what they are now."""

    def __init__(self, clip: Clip, parameters: list[Tensor], *how: Any) -> None:
        self.clip, self.parameters, self.how = clip, parameters, how
        self.grads = [(param, param.grad, param.grad._version) for param in parameters if param.grad is not None]

    def __call__(self, step: Callable[[], bool]) -> bool:
        """The step, with the clipping; without where the gradients that it was for have gone."""
        if not self._there():
            return step()
        with self.clip.active():
            return step()

    def now(self) -> None:
        """Clips the gradients themselves."""
        if self._there():
            timms_dispatch(self.parameters, *self.how)

    def _there(self) -> bool:
        """Whether the gradients are there, and not others.

        Raises:
            RuntimeError: some are, or they have been changed.
        """
        kept = [param.grad is grad for param, grad, _ in self.grads]
        if not any(kept):
            return False
        if not all(kept) or any(grad._version != version for _, grad, version in self.grads):
            raise RuntimeError(_CHANGED)
        return True


def dispatch_clip_grad(
    parameters: Tensor | Iterable[Tensor], value: float, mode: str = "norm", norm_type: float = 2.0
) -> None:
    """timm.utils.dispatch_clip_grad that has the next step of the parameters' optimizer clip.

    The gradients are left unclipped then; the norm before clipping is `optimizer.stats.grad_norm`, of unscaled
    gradients where the step unscales. The parameters must be those of one gradops optimizer that is alive: with "norm"
    and "value" all that have a gradient, with "agc" any; the others are spared. Everything else is clipped here and
    now by timm's own: parameters of no or several such optimizers, values that are not positive, and clippings that
    the step would do in another order than this and the optimizer's own, such as by norm where it has a `clip_value`.

    A clipping holds for that one step. It is dropped with its gradients, and done at once where another follows.

    Args:
        parameters: what to clip.
        value: max_norm, clip_value, or the factor of "agc".
        mode: "norm", "value" or "agc".
        norm_type: of "norm"; with another than 2 "agc" is timm's.

    Raises:
        RuntimeError: by this or by the step: the gradients were changed in between, and so cannot be clipped as they
            were.
    """
    listed = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    optimizers, asked = alive(), set(listed)
    for optimizer in optimizers:
        waiting = optimizer.engine.once
        if isinstance(waiting, _AtNextStep) and not asked.isdisjoint(waiting.parameters):
            optimizer.engine.once = None
            waiting.now()
    found = [clip_in_step(optimizer, listed, value, mode, norm_type) for optimizer in optimizers]
    clips = [clip for clip in found if clip is not None]
    if len(clips) == 1:
        clips[0].optimizer.engine.once = _AtNextStep(clips[0], listed, value, mode, norm_type)
    else:
        timms_dispatch(listed, value, mode, norm_type)


# By this a second import finds timm's. Not `__wrapped__`, by which help() and pages would show timm's text.
dispatch_clip_grad.timms = timms_dispatch  # type: ignore[attr-defined]


def install(scaler: type) -> None:
    """Puts ours in the places of timm's."""
    for module in (utils, utils.clip_grad, utils.cuda):
        module.dispatch_clip_grad = dispatch_clip_grad
    for module in (utils, utils.cuda):
        module.NativeScaler = scaler
