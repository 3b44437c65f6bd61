"""Every recipe that is measured, in one list: what a training loop calls between backward() and the next forward.

The gradients' norm is below `MAX_NORM` and the loss scale is 1, so that a recipe which writes gradients back finds the
same values at every repetition; none of them takes a shortcut for that.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import gradops
from gradops.bench.models import Shape

MAX_NORM = 1.0
_GRAD_NORM = 0.5
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
    """

    name: str
    build: Build
    hidden_bytes: Callable[[int], int] | None
    versus: str | None = None
    cases: tuple[str, ...] | None = None


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


def nothing_hidden(_: int) -> int:
    """For recipes whose every byte moves in an operator call."""
    return 0


def one_pass_bytes(element: int, master: bool = False, moment: int = 4, compensation: bool = False) -> int:
    """The gradient is read twice, parameter and moments once; the last three are written.

    With a float32 master that is read and written, and the parameter only written. A compensation is as large as the
    parameter, read and written.
    """
    updated = 4 if master else element * (1 + compensation)
    return 2 * element + 2 * (updated + 2 * moment) + (element if master else 0)


def _adamw(params: list[Tensor], **kind: Any) -> torch.optim.AdamW:
    return torch.optim.AdamW(params, lr=1e-5, **kind)


def _torch_clipped(**kind: bool) -> Build:
    def build(params: list[Tensor], **how: bool) -> Step:
        optimizer = _adamw(params, **kind, **how)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
            optimizer.step()

        return step

    return build


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


def _torch_scaled(**kind: bool) -> Build:
    def build(params: list[Tensor], **how: bool) -> Step:
        return _scaled_step(_adamw(params, **kind, **how), params, torch.nn.utils.clip_grad_norm_)

    return build


def _torch_compiled(params: list[Tensor], **how: bool) -> Step:
    optimizer = _adamw(params, foreach=True, **how)

    @torch.compile
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, MAX_NORM, foreach=True)
        optimizer.step()

    return step


def _torch_compiled_scaled(params: list[Tensor], **how: bool) -> Step:
    optimizer = _adamw(params, foreach=True, **how)
    # GradScaler decides in Python whether to step, so that what surrounds the decision is compiled in two parts.
    optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
    return _scaled_step(optimizer, params, torch.compile(torch.nn.utils.clip_grad_norm_))


def gradops_clipped(**settings: Any) -> Build:
    """Our step with norm clipping, and what `settings` say beside it."""

    def build(params: list[Tensor], **_: bool) -> Step:
        return gradops.wrap(_adamw(params), max_norm=MAX_NORM, **settings).step

    return build


def _gradops_scaled(params: list[Tensor], **_: bool) -> Step:
    policy = gradops.DynamicLossScale(**_FIXED_SCALE)
    optimizer: Any = gradops.wrap(_adamw(params), max_norm=MAX_NORM, loss_scale=policy)
    loss = torch.ones((), dtype=torch.float32, device=params[0].device)

    def step() -> None:
        optimizer.scale(loss)
        optimizer.step()

    return step


GRADOPS, GRADOPS_SCALED, GRADOPS_CAPPED = "gradops", "gradops + loss scale", "gradops + max_relative_step"
COMPILED_CASES = ("resnet18", "161x64")

RECIPES = [
    Recipe("torch loop + GradScaler + clip", _torch_scaled(foreach=False), nothing_hidden, GRADOPS_SCALED),
    Recipe("torch loop + clip", _torch_clipped(foreach=False), nothing_hidden, GRADOPS),
    Recipe("torch foreach + GradScaler + clip", _torch_scaled(foreach=True), nothing_hidden, GRADOPS_SCALED),
    Recipe("torch foreach + clip", _torch_clipped(foreach=True), nothing_hidden, GRADOPS),
    Recipe("torch fused + GradScaler + clip", _torch_scaled(fused=True), nothing_hidden, GRADOPS_SCALED),
    Recipe("torch fused + clip", _torch_clipped(fused=True), nothing_hidden, GRADOPS),
    Recipe("torch.compile + GradScaler + clip", _torch_compiled_scaled, None, GRADOPS_SCALED, COMPILED_CASES),
    Recipe("torch.compile + clip", _torch_compiled, None, GRADOPS, COMPILED_CASES),
    Recipe(GRADOPS_SCALED, _gradops_scaled, one_pass_bytes),
    Recipe(GRADOPS, gradops_clipped(), one_pass_bytes),
    Recipe(GRADOPS_CAPPED, gradops_clipped(max_relative_step=0.05), one_pass_bytes, GRADOPS),
]


def recipes_for(case: str) -> list[Recipe]:
    """The recipes that are measured on a case, in the tables' order."""
    return [recipe for recipe in RECIPES if recipe.cases is None or case in recipe.cases]
