"""A recorded run as the checks look at it: by layer, with steps and names at hand."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradops.diagnose.finding import quoted
from gradops.diagnose.history import Departure, departures
from gradops.record.run import Run

ROUNDING, LARGE_MOVE = 1e-6, 0.3


# So many samples are named in a sentence; `run.batch` has all.
MOST_SAMPLES = 16


def layer_of(name: str) -> str:
    """The module that holds a parameter: `stage1.0.conv1` of `stage1.0.conv1.weight`."""
    return name.rpartition(".")[0] or name


class View:
    """A run with its parameters gathered into layers, in the order in which the model defines them.

    Attributes:
        run: the run itself.
        layers: [K], the modules that hold parameters; not `run.layers`, the modules whose outputs were watched.
        members: [K], of each the indices of its parameters.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        gathered: dict[str, list[int]] = {}
        for index, name in enumerate(run.names):
            gathered.setdefault(layer_of(name), []).append(index)
        self.layers = list(gathered)
        self.members = list(gathered.values())

    def __len__(self) -> int:
        return len(self.run.steps)

    def step(self, row: int) -> int:
        """The attempted step of a row, as the user counts them."""
        return int(self.run.steps[row])

    def name(self, layer: str) -> str:
        """A layer or parameter among words, many of which are bare numbers, with the type of its module."""
        kind = self.run.modules.get(layer) or self.run.modules.get(layer_of(layer))
        return quoted(layer) + (f" ({kind})" if kind else "")

    def layer(self, name: str) -> str:
        """The same, said to be a layer."""
        return f"layer {self.name(name)}"

    def skipped(self, row: int) -> str:
        """A sentence on what a step that was skipped left alone; nothing for others."""
        if not self.run.skipped[row]:
            return ""
        also = ", and by protect the model's running statistics" if self._protects else ""
        return f" The step was skipped: the weights and the optimizer's moments{also} are as they were before it."

    @property
    def _protects(self) -> bool:
        return bool(self.run.about.get("protect")) and not self.run.running

    def samples(self, row: int) -> str:
        """A sentence that names the samples of a row's batch; nothing where nobody gave them."""
        batch = list(map(str, self.run.batch(row)))
        if not batch:
            return ""
        more = f" and {len(batch) - MOST_SAMPLES} more" if len(batch) > MOST_SAMPLES else ""
        return f" Its samples: {', '.join(batch[:MOST_SAMPLES])}{more}."

    @cached_property
    def losses(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The rows for which a loss was given, and the losses: what is no number is inf, above all that are."""
        given = self.run.has_loss
        if given is None:
            given = np.full(len(self), bool(np.isfinite(self.run.loss).any()))
        rows = np.flatnonzero(given)
        values = self.run.loss[rows].astype(np.float64)
        return rows, np.where(np.isfinite(values), values, np.inf)

    @cached_property
    def sampled(self) -> NDArray[np.bool_]:
        """[S], whether the outputs of any layer were measured."""
        measured = np.isfinite(self.run.activation_negative) | (self.run.activation_nonfinite > 0)
        return np.any(measured, axis=1)

    @cached_property
    def norms(self) -> NDArray[np.float64]:
        """[S, K], the norm of each layer's gradient."""
        squares = np.square(self.run.norms.astype(np.float64))
        return np.sqrt(np.stack([squares[:, of].sum(axis=1) for of in self.members], axis=1))

    @cached_property
    def leaves(self) -> list[Departure]:
        """Where the global gradient norm left its history."""
        return departures(self.run.grad_norm)

    @cached_property
    def layer_leaves(self) -> list[list[Departure]]:
        """[K], where each layer's gradient left its history."""
        return [departures(self.norms[:, index]) for index in range(len(self.layers))]

    @cached_property
    def activation_leaves(self) -> list[list[Departure]]:
        """[L], where the largest output of each watched layer left its history."""
        return [departures(self.run.activation_abs_max[:, index]) for index in range(len(self.run.layers))]

    @cached_property
    def first_rms(self) -> NDArray[np.float64]:
        """[P], the RMS of each parameter after its first update, which is nearly that of its initialisation."""
        return _first(self.run.param_rms)

    @cached_property
    def began_as_ones(self) -> list[bool]:
        """[P], whether all of a parameter's elements were 1 before the first update, as a normalisation's gains are.

        The module's type says so; or its size, unless the update was so large that any weight could have been 1 before.
        """
        moved = _first(self.run.update_ratio) * self.first_rms
        ones = (np.abs(self.first_rms - 1) <= moved + ROUNDING) & (moved < LARGE_MOVE)
        types = [self.run.modules.get(layer_of(name), "") for name in self.run.names]
        return [bool(one) or "Norm" in kind for one, kind in zip(ones, types, strict=True)]

    @cached_property
    def weights(self) -> list[int]:
        """Indices of weights that multiply: neither biases nor the gains of normalisations."""
        return [
            index
            for index, name in enumerate(self.run.names)
            if name.endswith("weight") and not self.began_as_ones[index] and self.first_rms[index] > 0
        ]

    @cached_property
    def normalises(self) -> bool:
        """Whether a normalisation was seen: a weight whose elements all began as ones."""
        return any(
            ones and name.endswith("weight") for ones, name in zip(self.began_as_ones, self.run.names, strict=True)
        )

    @cached_property
    def from_start(self) -> bool:
        """Whether the record begins with the training: it may begin later, and a ring forgets."""
        return len(self) > 0 and self.step(0) == 0

    @cached_property
    def gains(self) -> dict[str, float]:
        """Of layers with weight and bias: what a layer multiplies the size of its inputs by when training begins.

        RMS(weight) times the root of the fan-in; Kaiming's initialisation gives 1.41 before a ReLU (He et al. 2015).
        """
        place = {name: index for index, name in enumerate(self.run.names)}
        gains = {}
        for index in self.weights:
            bias = place.get(f"{layer_of(self.run.names[index])}.bias")
            if bias is not None and self.run.sizes[index] > self.run.sizes[bias] > 0:
                fan_in = self.run.sizes[index] / self.run.sizes[bias]
                gains[layer_of(self.run.names[index])] = float(self.first_rms[index] * np.sqrt(fan_in))
        return gains


def _first(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """[P], the first finite value of each column; NaN where there is none."""
    known = np.isfinite(values)
    first = values[known.argmax(axis=0), np.arange(values.shape[1])].astype(np.float64)
    return np.where(known.any(axis=0), first, np.nan)
