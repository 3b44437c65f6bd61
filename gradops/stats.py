"""What a step measured, in live buffers that each step overwrites."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from gradops.notebook import paragraph, table

# Of the fields, those with one value and those with one a parameter.
SCALARS = (
    "grad_norm",
    "clip_coef",
    "found_inf",
    "loss_scale",
    "guarded",
    "lr_factor",
    "steps_taken",
    "steps_skipped",
)
ROWS = ("norms", "abs_max", "nonfinite", "capped", "update_ratio", "param_rms")
# What a notebook shows of the rows.
MOST_ROWS = 20
# What runs the steps before the first one.
NO_BACKEND = "none yet"


@dataclass(frozen=True, repr=False)
class StepStats:
    """What the last step measured and did.

    The tensors of `optimizer.stats` are live: at fixed addresses, and overwritten by each step. To keep a value, take
    `stats.clone()`, or `stats.cpu()` to wait for it: `history.append(optimizer.stats.grad_norm)` appends the same
    tensor again and again.

    Attributes:
        grad_norm: float32, 0-d. Norm over all parameters, after unscaling and clamping, before clipping. NaN if any
            element is NaN, else inf if any is inf.
        clip_coef: float32, 0-d. What the gradients were multiplied by to clip them; 1 where nothing was clipped. With
            clip_mode "agc" the smallest factor of a unit.
        found_inf: float32, 0-d. 1 if an inf or NaN was seen and the step skipped, else 0.
        loss_scale: float32, 0-d. The loss scale that this step divided by; 1 without loss scaling.
        guarded: float32, 0-d. 1 if the `SpikeGuard` found this step's norm to be a spike, and clipped or skipped it.
        lr_factor: float32, 0-d. What the guard multiplied the learning rates of this step by; 1 without a guard.
        steps_taken: int64, 0-d. Steps that updated the parameters.
        steps_skipped: int64, 0-d. Steps that did not, because of an inf or NaN or because the guard skipped them.
        norms: float32, one per parameter, as `grad_norm`. 0 for a parameter without a gradient, as in all that follow.
        abs_max: float32, one per parameter. Largest absolute value after unscaling, before clamping; NaN and inf as in
            `grad_norm`.
        nonfinite: int64, one per parameter. Elements that are inf or NaN after unscaling.
        capped: bool, one per parameter. Whether `max_relative_step` lowered its learning rate.
        update_ratio: float32, one per parameter. L2 norm of what the step added to the stored parameter over the norm
            of the parameter after it; 0 where both are 0. NaN for a parameter with a gradient in a skipped step. This
            row and the next are of the masters where there are any; steps with `track_updates` write them, NaN before
            the first.
        param_rms: float32, one per parameter. Root mean square of the stored values after the step; a skipped step
            leaves the row alone.
        names: the parameters' names in the order of the rows, from named parameters where the optimizer has them.
        backend: what runs the steps: device, instruction set or form of the launch; set by the first one.
    """

    grad_norm: Tensor
    clip_coef: Tensor
    found_inf: Tensor
    loss_scale: Tensor
    guarded: Tensor
    lr_factor: Tensor
    steps_taken: Tensor
    steps_skipped: Tensor
    norms: Tensor
    abs_max: Tensor
    nonfinite: Tensor
    capped: Tensor
    update_ratio: Tensor
    param_rms: Tensor
    names: tuple[str, ...]
    backend: str

    def __repr__(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self._scalars().items())
        return f"<gradops StepStats: {said}; rows of {len(self.names)} parameters; backend {self.backend}>"

    def _repr_html_(self) -> str:
        scalars = table(list(self._scalars()), [list(self._scalars().values())])
        rows = {name: getattr(self, name).tolist() for name in ROWS}
        largest = sorted(range(len(self.names)), key=lambda row: _size(rows["norms"][row]), reverse=True)[:MOST_ROWS]
        cells = ([self.names[row], *(_short(rows[name][row]) for name in ROWS)] for row in largest)
        of = f"{len(largest)} of {len(self.names)} parameters, those with the largest gradients"
        return paragraph(f"StepStats, backend {self.backend}") + scalars + paragraph(of) + table(["name", *ROWS], cells)

    def _scalars(self) -> dict[str, str]:
        """What there is one of, in words; waits for the device."""
        return {name: _short(getattr(self, name).item()) for name in SCALARS}

    def clone(self) -> "StepStats":
        """A snapshot on the same device, which later steps leave alone."""
        return self._map(torch.Tensor.clone)

    def cpu(self) -> "StepStats":
        """A snapshot on the CPU; waits for the device."""
        return self._map(lambda tensor: tensor.detach().to("cpu", copy=True))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "StepStats":
        tensors = (field.name for field in fields(self) if field.name not in ("names", "backend"))
        values: dict[str, Any] = {name: change(getattr(self, name)) for name in tensors}
        return replace(self, **values)


def _short(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _size(norm: float) -> float:
    return math.inf if math.isnan(norm) else norm


class StepBuffers:
    """The memory behind `StepStats`, the loss scale and the guard, in the order that csrc/host/step_backend.h gives it.

    Attributes:
        current_scale, growth_tracker: what the next step's loss scale comes from.
        guard: what the `SpikeGuard` knows: the next step's learning-rate factor, usual norm, deviation, norms seen.
    """

    stats: StepStats

    def __init__(self) -> None:
        self.scalars = torch.zeros(10, dtype=torch.float32, device="cpu")
        self.counters = torch.zeros(4, dtype=torch.int64, device="cpu")
        self.scalars[[1, 3, 4, 6, 7]] = 1.0  # clip_coef, both loss scales and both learning-rate factors
        self._make_rows(())

    def all(self) -> tuple[Tensor, ...]:
        """Every buffer, in the order of StepPlan::bind_params."""
        rows = (self.norms, self.abs_max, self.nonfinite, self.capped, self.update_ratio, self.param_rms)
        return self.scalars, self.counters, *rows

    @property
    def steps(self) -> Tensor:
        """The numbers of steps taken and skipped."""
        return self.counters[:2]

    def resize(self, names: tuple[str, ...], device: torch.device) -> None:
        """Gives each of these parameters a row on its device; what the whole step measured is kept."""
        if names == self.stats.names and device == self.scalars.device:
            return
        self.scalars, self.counters = self.scalars.to(device), self.counters.to(device)
        self._make_rows(names)

    def set_backend(self, description: str) -> None:
        """Notes what ran the last step."""
        if description != self.stats.backend:
            self.stats = replace(self.stats, backend=description)

    def _make_rows(self, names: tuple[str, ...]) -> None:
        device = self.scalars.device
        self.norms = torch.zeros(len(names), dtype=torch.float32, device=device)
        self.abs_max = torch.zeros(len(names), dtype=torch.float32, device=device)
        self.nonfinite = torch.zeros(len(names), dtype=torch.int64, device=device)
        self.capped = torch.zeros(len(names), dtype=torch.bool, device=device)
        self.update_ratio = torch.full((len(names),), math.nan, dtype=torch.float32, device=device)
        self.param_rms = torch.full((len(names),), math.nan, dtype=torch.float32, device=device)
        grad_norm, clip_coef, found_inf, loss_scale, self.current_scale, guarded, lr_factor, *guard = (
            self.scalars.unbind()
        )
        steps_taken, steps_skipped, self.growth_tracker, norms_seen = self.counters.unbind()
        self.guard = (*guard, norms_seen)
        self.stats = StepStats(
            grad_norm,
            clip_coef,
            found_inf,
            loss_scale,
            guarded,
            lr_factor,
            steps_taken,
            steps_skipped,
            self.norms,
            self.abs_max,
            self.nonfinite,
            self.capped,
            self.update_ratio,
            self.param_rms,
            names,
            backend=NO_BACKEND,
        )
