"""What has been read out of a recorder's ring, and the `Run` that is made of it."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradops.record.activations import COUNTED, MEASURES, histogram_edges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradops.record.run import Run

# Columns of the ring with one value a parameter, and what stands where a parameter has none.
PER_PARAM: dict[str, tuple[torch.dtype, float]] = {
    "norms": (torch.float32, math.nan),
    "abs_max": (torch.float32, math.nan),
    "nonfinite": (torch.int64, 0),
    "update_ratio": (torch.float32, math.nan),
    "param_rms": (torch.float32, math.nan),
    "capped": (torch.bool, 0),
}
ACTIVATIONS = ("activation_measures", "activation_counts")


@dataclass(frozen=True)
class Params:
    """The parameters in the order of an optimizer's rows."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: tuple[int, ...]


@dataclass
class Chunk:
    """Some steps, read out together, in which the parameters were the same.

    Attributes:
        params: the parameters of the rows.
        attempted: [S] int64, attempted steps up to and including each.
        sampled: [S] bool, whether activations were looked at.
        has_loss: [S] bool, whether a loss was given.
        samples: [S, B], those of each step's batch, as `Run.samples`.
        did_something: [R] bool, of each call of `step`, whether any parameter had a gradient; S of them had.
        columns: the ring's columns by name, [S, ...]; those of the activations have a row for each sampled step only.
    """

    params: Params
    attempted: Tensor
    sampled: Tensor
    has_loss: Tensor
    samples: "NDArray[Any]"
    did_something: Tensor
    columns: dict[str, Tensor]


@dataclass
class History:
    """The steps so far, oldest first.

    Attributes:
        layers: the modules whose outputs were watched.
        modules: `Run.modules`. running: `Run.running`.
        order: names of parameters in the order of the model.
        chunks: what has been read out.
    """

    layers: list[str]
    order: list[str]
    modules: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)

    def last_steps(self, least: int) -> "History":
        """Only the last chunks, as many as have so many steps."""
        count, steps = 0, 0
        while count < len(self.chunks) and steps < least:
            count += 1
            steps += len(self.chunks[-count].attempted)
        return self.last(count) if count else self

    def last(self, count: int) -> "History":
        """Only the last chunks."""
        return replace(self, chunks=self.chunks[-count:])

    def run(self, now: Params, about: dict[str, Any]) -> "Run":
        """The record as arrays.

        Args:
            now: the parameters that the optimizer has now.
            about: `Run.about`.
        """
        from gradops.record.run import Run
        from gradops.record.samples import joined

        params = self._params(now)
        scalars = self._joined("scalars", (10,), torch.float32)
        values: dict[str, Tensor] = {
            "steps": torch.cat(
                [torch.empty(0, dtype=torch.int64, device="cpu"), *(chunk.attempted for chunk in self.chunks)]
            )
            - 1,
            "grad_norm": scalars[:, 0],
            "clip_coef": scalars[:, 1],
            "skipped": skipped_of(scalars),
            "loss_scale": scalars[:, 3],
            "loss": self._joined("loss", (), torch.float32),
            "has_loss": torch.cat(
                [torch.empty(0, dtype=torch.bool, device="cpu"), *(chunk.has_loss for chunk in self.chunks)]
            ),
            "lr": self._rates(1 + max(now.groups, default=0)) * scalars[:, 6:7],
            **{name: self._per_param(name, params.names) for name in PER_PARAM},
            **self._activations(),
        }
        return Run(
            names=list(params.names),
            sizes=torch.tensor(params.sizes, dtype=torch.int64, device="cpu").numpy(),
            groups=torch.tensor(params.groups, dtype=torch.int64, device="cpu").numpy(),
            layers=list(self.layers),
            histogram_edges=torch.tensor(histogram_edges(), dtype=torch.float32, device="cpu").numpy(),
            about=about,
            samples=joined([chunk.samples for chunk in self.chunks]),
            modules=self.modules,
            running=self.running,
            **{name: tensor.contiguous().numpy() for name, tensor in values.items()},
        )

    def _params(self, now: Params) -> Params:
        """Every parameter there ever was, as it was last, in the model's order."""
        found: dict[str, tuple[int, int]] = {}
        for params in (*(chunk.params for chunk in self.chunks), now):
            rows = zip(params.names, params.sizes, params.groups, strict=True)
            found.update({name: (size, group) for name, size, group in rows})
        places = {name: place for place, name in enumerate(self.order)}
        names = sorted(found, key=lambda name: places.get(name, len(places)))
        return Params(tuple(names), tuple(found[name][0] for name in names), tuple(found[name][1] for name in names))

    def _joined(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.cat(
            [torch.empty((0, *shape), dtype=dtype, device="cpu"), *(chunk.columns[name] for chunk in self.chunks)]
        )

    def _rates(self, groups: int) -> Tensor:
        """[S, G]; NaN where a group was not there yet."""
        rates = [chunk.columns["lr"] for chunk in self.chunks]
        groups = max((rate.shape[1] for rate in rates), default=groups)
        padded = [torch.nn.functional.pad(rate, (0, groups - rate.shape[1]), value=math.nan) for rate in rates]
        return torch.cat([torch.empty((0, groups), dtype=torch.float32, device="cpu"), *padded])

    def _per_param(self, name: str, names: tuple[str, ...]) -> Tensor:
        dtype, missing = PER_PARAM[name]
        place = {param: index for index, param in enumerate(names)}
        parts = [torch.empty((0, len(names)), dtype=dtype, device="cpu")]
        for chunk in self.chunks:
            part = torch.full((len(chunk.attempted), len(names)), missing, dtype=dtype, device="cpu")
            part[:, [place[param] for param in chunk.params.names]] = chunk.columns[name]
            parts.append(part)
        return torch.cat(parts)

    def _activations(self) -> dict[str, Tensor]:
        """Columns of all steps, from the rows of those in which activations were looked at."""
        bins = len(histogram_edges()) + 1
        sampled = torch.cat([torch.empty(0, dtype=torch.bool, device="cpu"), *(chunk.sampled for chunk in self.chunks)])
        measures = torch.full(
            (len(sampled), len(self.layers), len(MEASURES)), math.nan, dtype=torch.float32, device="cpu"
        )
        counts = torch.zeros((len(sampled), len(self.layers), len(COUNTED) + bins), dtype=torch.int64, device="cpu")
        for rows, name in zip((measures, counts), ACTIVATIONS, strict=True):
            if self.layers and self.chunks:
                rows[sampled] = torch.cat([chunk.columns[name] for chunk in self.chunks]).to(rows.dtype)
        shares = counts[..., 1:3].float() / counts[..., :1]  # 0/0 is NaN: not measured
        return {
            **{f"activation_{name}": measures[..., index] for index, name in enumerate(MEASURES)},
            "activation_near_zero": shares[..., 0],
            "activation_negative": shares[..., 1],
            "activation_nonfinite": counts[..., 3],
            "activation_histogram": counts[..., len(COUNTED) :],
        }


def skipped_of(scalars: Tensor) -> Tensor:
    """[S] bool, which steps were skipped, for an inf or NaN or by a guard, of the ring's column `scalars`."""
    # A step that the guard has clipped has a coefficient below 1.
    return (scalars[:, 2] != 0) | ((scalars[:, 5] != 0) & (scalars[:, 1] == 1))
