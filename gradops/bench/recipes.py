"""Every recipe that is measured, in one list: what a training loop calls between backward() and the next forward.

The gradients' norm is below `MAX_NORM` and the loss scale is 1, so that a recipe which writes gradients back finds the
same values at every repetition; none of them takes a shortcut for that.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import gradops
from gradops.bench.costs import nothing_hidden, one_pass_bytes
from gradops.bench.models import Shape
from gradops.bench.optimizers import Subject, subject

MAX_NORM = 1.0
_GRAD_NORM = 0.5
_EMA_DECAY = 0.9998
# One for ever: torch divides the gradients by it in place, and would bring them to zero within a few repetitions.
_FIXED_SCALE: dict[str, Any] = {"init_scale": 1.0, "growth_interval": 2**30}

Step = Callable[[], object]
# Parameters that have gradients to the function to time. Keywords are torch's, such as capturable=True for a step that
# a CUDA graph will hold; recipes that can always be captured ignore it.
Build = Callable[..., Step]


@dataclass(frozen=True)
class Recipe:
    """One way to do the optimizer phase.

    Attributes:
        name: what tables call it.
        build: makes the function to time.
        hidden_bytes: memory traffic per parameter that no operator call shows, from the bytes of an element of
            parameter and gradient; None where it cannot be derived from the calls.
        versus: the gradops recipe that does the same work, None for that one itself.
        cases: the only ones it is measured on unless it is asked for, all when None; torch.compile needs minutes for
            each.
        optimizer: whose phase it is.
    """

    name: str
    build: Build
    hidden_bytes: Callable[[int], int] | None
    versus: str | None = None
    cases: tuple[str, ...] | None = None
    optimizer: str = "AdamW"


def make_params(shapes: Iterable[Shape], grads: list[Tensor]) -> list[Tensor]:
    """Fresh parameters of the given shapes, each with its gradient of `grads` (shared by recipes), whose kind it is."""
    params: list[Tensor] = []
    for shape, grad in zip(shapes, grads, strict=True):
        values = torch.randn(shape, dtype=torch.float32, device=grad.device) * 0.05
        param = torch.nn.Parameter(values.to(grad.dtype))
        param.grad = grad
        params.append(param)
    return params


def make_grads(shapes: Iterable[Shape], seed: int = 0) -> list[Tensor]:
    """Random gradients with a global norm of 0.5, so that clipping to `MAX_NORM` multiplies by 1."""
    generator = torch.Generator().manual_seed(seed)
    shapes = list(shapes)
    std = _GRAD_NORM / math.sqrt(sum(map(math.prod, shapes)))
    return [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") * std for shape in shapes]


def _torch_clipped(of: Subject, how: dict[str, Any]) -> Build:
    def build(params: list[Tensor], **graph: bool) -> Step:
        return clipped_step(of.native(params, **how, **graph), params)

    return build


def clipped_step(optimizer: Any, params: list[Tensor]) -> Step:
    """Torch's clipping, then the optimizer's step."""

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        optimizer.step()

    return step


def _scaled_step(optimizer: torch.optim.Optimizer, params: list[Tensor], clip: Callable[..., object]) -> Step:
    """The phase as torch's documentation of GradScaler writes it."""
    device = params[0].device
    loss, scaler = torch.ones((), dtype=torch.float32, device=device), torch.amp.GradScaler(device.type, **_FIXED_SCALE)

    def step() -> None:
        scaler.scale(loss)
        scaler.unscale_(optimizer)
        clip(params, MAX_NORM)
        scaler.step(optimizer)
        scaler.update()

    return step


def _torch_scaled(of: Subject, how: dict[str, Any]) -> Build:
    def build(params: list[Tensor], **graph: bool) -> Step:
        return _scaled_step(of.native(params, **how, **graph), params, torch.nn.utils.clip_grad_norm_)

    return build


def _torch_scaled_with_ema(of: Subject, how: dict[str, Any]) -> Build:
    """With timm's average of the weights behind it."""

    def build(params: list[Tensor], **graph: bool) -> Step:
        average_of: Any = importlib.import_module("timm.utils").ModelEmaV3
        step, model = _torch_scaled(of, how)(params, **graph), torch.nn.ParameterList(params)
        average = average_of(_without_grads(model), decay=_EMA_DECAY)

        def step_and_average() -> None:
            step()
            average.update(model)

        return step_and_average

    return build


def _without_grads(model: torch.nn.ParameterList) -> torch.nn.ParameterList:
    """A copy, which would have copies of the gradients too."""
    return torch.nn.ParameterList([torch.nn.Parameter(param.detach().clone()) for param in model])


def _torch_compiled(of: Subject) -> Build:
    def build(params: list[Tensor], **graph: bool) -> Step:
        optimizer = of.native(params, foreach=True, **graph)

        @torch.compile
        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
            optimizer.step()

        return step

    return build


def _torch_compiled_scaled(of: Subject) -> Build:
    def build(params: list[Tensor], **graph: bool) -> Step:
        optimizer = of.native(params, foreach=True, **graph)
        # GradScaler decides in Python whether to step, so that what surrounds the decision is compiled in two parts.
        optimizer.step = torch.compile(optimizer.step)  # type: ignore[assignment,method-assign]
        return _scaled_step(optimizer, params, torch.compile(torch.nn.utils.clip_grad_norm_))

    return build


def gradops_clipped(of: Subject, **settings: Any) -> Build:
    """Our step with norm clipping, and what `settings` say beside it."""

    def build(params: list[Tensor], **_: bool) -> Step:
        return of.one_pass(params, max_norm=MAX_NORM, **settings).step

    return build


def _wrapped_only(of: Subject) -> Build:
    """What people have who wrap the optimizer and delete nothing."""

    def build(params: list[Tensor], **_: bool) -> Step:
        return _scaled_step(of.one_pass(params), params, torch.nn.utils.clip_grad_norm_)

    return build


def _gradops_scaled(of: Subject, **settings: Any) -> Build:
    def build(params: list[Tensor], **_: bool) -> Step:
        policy = gradops.DynamicLossScale(**_FIXED_SCALE)
        optimizer = of.one_pass(params, max_norm=MAX_NORM, loss_scale=policy, **settings)
        loss = torch.ones((), dtype=torch.float32, device=params[0].device)

        def step() -> None:
            optimizer.scale(loss)
            optimizer.step()

        return step

    return build


GRADOPS, GRADOPS_SCALED, GRADOPS_CAPPED = "gradops", "gradops + loss scale", "gradops + max_relative_step"
GRADOPS_EMA = "gradops + loss scale + ema"
COMPILED_CASES = ("resnet18", "161x64")


def recipes_of(of: Subject) -> list[Recipe]:
    """Every recipe of an optimizer, in the tables' order."""
    named = partial(Recipe, optimizer=of.name)
    ours = partial(one_pass_bytes, moments=of.moments)
    found = []
    for form, how in of.forms.items():
        found.append(named(f"{form} + GradScaler + clip", _torch_scaled(of, how), nothing_hidden, GRADOPS_SCALED))
        found.append(named(f"{form} + clip", _torch_clipped(of, how), nothing_hidden, GRADOPS))
    if "torch foreach" in of.forms:
        compiled = partial(named, hidden_bytes=None, cases=COMPILED_CASES)
        scaled = _torch_compiled_scaled(of)
        found.append(compiled("torch.compile + GradScaler + clip", scaled, versus=GRADOPS_SCALED))
        found.append(compiled("torch.compile + clip", _torch_compiled(of), versus=GRADOPS))
    return [
        *found,
        *_with_ema(of),
        named("wrapped only + GradScaler + clip", _wrapped_only(of), ours, GRADOPS_SCALED),
        named(GRADOPS_SCALED, _gradops_scaled(of), ours),
        named(GRADOPS, gradops_clipped(of), ours),
        named(GRADOPS_CAPPED, gradops_clipped(of, max_relative_step=0.05), ours, GRADOPS),
    ]


def _with_ema(of: Subject) -> Iterator[Recipe]:
    """An average of the weights, by timm after the native step and by us in it; measured where it is asked for."""
    form, how = list(of.forms.items())[-1]
    named = partial(Recipe, optimizer=of.name, cases=())
    theirs = _torch_scaled_with_ema(of, how)
    yield named(f"{form} + GradScaler + clip + ModelEmaV3", theirs, nothing_hidden, GRADOPS_EMA)
    ours = _gradops_scaled(of, ema=gradops.WeightEma(_EMA_DECAY))
    yield named(GRADOPS_EMA, ours, partial(one_pass_bytes, moments=of.moments, ema=True))


def native_recipes(of: Subject) -> list[Recipe]:
    """The fastest native form, with and without GradScaler and average, and ours beside each."""
    fastest = list(of.forms)[-1]
    theirs = [recipe for recipe in recipes_of(of) if recipe.name.startswith(fastest)]
    wanted = {recipe.versus for recipe in theirs} | {recipe.name for recipe in theirs}
    return [recipe for recipe in recipes_of(of) if recipe.name in wanted]


RECIPES = recipes_of(subject("AdamW"))


def recipes_for(case: str) -> list[Recipe]:
    """AdamW's recipes that are measured on a case, in the tables' order."""
    return [recipe for recipe in RECIPES if recipe.cases is None or case in recipe.cases]
