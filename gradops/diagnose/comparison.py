"""Two runs side by side: at which step and in which layer they part, and by how much."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradops import notebook, shortcuts
from gradops.diagnose.finding import counted, number, share
from gradops.diagnose.view import View
from gradops.record.run import Run

if TYPE_CHECKING:
    from gradops.figure import Picture

# Runs of two precisions differ a little from the first step on: apart is what nobody calls rounding.
APART = 0.1
LAST = 10
# What the settings of two machines may be without one of them being the reason.
INCIDENTAL = ("torch", "device", "backend", "by_gradient")


@dataclass(frozen=True)
class Parting:
    """The first moment at which two runs differ by more than a share.

    Attributes:
        step: the attempted step.
        what: what differs: "outputs", "loss", "gradient", "rate" or "weights".
        layer: of which layer or parameter; None for what is of the whole model.
        text: the same in words, with both values.
        values: in the first run and in the second.
    """

    step: int
    what: str
    layer: str | None
    text: str
    values: tuple[float, float]

    @property
    def difference(self) -> float:
        """The distance over the larger one; inf where only one is a number."""
        return float(_difference(*map(np.asarray, self.values)))


@dataclass(frozen=True, repr=False)
class Comparison:
    """What two runs have in common, and from where on they have not.

    Attributes:
        runs: both. names: what they are called.
        steps: [S], those that both have.
        parts: where they first differ at all; None if they never do.
        apart: where they first differ by more than a tenth.
        settings: those that differ, by name.
    """

    runs: tuple[Run, Run]
    names: tuple[str, str]
    steps: NDArray[np.int64]
    parts: Parting | None
    apart: Parting | None
    settings: dict[str, tuple[Any, Any]]

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Picture":
        """Losses and norms of both runs in one picture.

        Args:
            path: where to write it, in the format that its suffix names; None for nowhere.
        """
        return shortcuts.picture_of_both(self, path, "Comparison.plot")

    def __repr__(self) -> str:
        return f"<gradops Comparison: {' '.join(str(self).splitlines()[:2])}>"

    def _repr_html_(self) -> str | None:
        def made() -> str:
            return f"{''.join(map(notebook.paragraph, str(self).splitlines()))}{notebook.image(self.plot(), str(self))}"

        return notebook.html_or_none(made)

    def __str__(self) -> str:
        first, second = self.names
        lines = [f"{first} and {second}: {counted(len(self.steps), 'step')} in both."]
        if self.parts is None:
            lines.append("They never part: every value is the same, bit for bit.")
        elif self.parts is self.apart:
            lines.append(f"They part at step {self.parts.step}: {self.parts.text}. {MEANING[self.parts.what]}")
        else:
            lines.append(f"They first differ at step {self.parts.step}: {self.parts.text}. {MEANING[self.parts.what]}")
        if self.apart is not None and self.apart is not self.parts:
            lines.append(f"They are apart by more than a tenth from step {self.apart.step} on: {self.apart.text}.")
        lines += self._ends()
        said = "; ".join(f"{name} {one} and {other}" for name, (one, other) in self.settings.items())
        return "\n".join(lines + ([f"Settings that differ: {said}."] if said else []))

    def _ends(self) -> list[str]:
        ends = [View(run).losses[1][-LAST:] for run in self.runs]
        if not all(map(len, ends)):
            return []
        one, other = (number(float(np.median(end))) for end in ends)
        return [f"Their losses end at {one} and {other} (medians of the last {LAST})."]


MEANING = {
    "outputs": "The batches or the weights differ, or how the forward pass computes.",
    "loss": "All outputs are the same: the targets or the loss function differ.",
    "gradient": "The forward pass is the same: the backward pass differs, or what changes gradients before the step.",
    "rate": "Everything else is the same: the schedules differ.",
    "weights": "The gradients are the same: the optimizers' settings or states differ.",
}


def compare(first: Run, second: Run, names: tuple[str, str] = ("first run", "second run")) -> Comparison:
    """Says where two runs part.

    Args:
        first, second: what Recorders saw; layers and parameters are matched by their names.
        names: what the runs are to be called.

    Raises:
        ValueError: they have no step in common.
    """
    steps, one, other = np.intersect1d(first.steps, second.steps, return_indices=True)
    if not len(steps):
        raise ValueError(f"{names[0]} and {names[1]} have no step in common")
    columns = [column for column in _columns(first, second) if column.layers != []]
    parts, apart = (_first(View(first), columns, steps, one, other, most) for most in (0.0, APART))
    keys = dict.fromkeys([*first.about, *second.about])
    both = {key: (first.about.get(key), second.about.get(key)) for key in keys if key not in INCIDENTAL}
    settings = {key: values for key, values in both.items() if values[0] != values[1]}
    same = parts is not None and apart is not None and (parts.step, parts.what) == (apart.step, apart.what)
    return Comparison((first, second), names, steps, apart if same else parts, apart, settings)


@dataclass(frozen=True)
class _Column:
    """Values of both runs [S, K]; `layers` are those of the columns in the order in which a step computes them."""

    what: str
    said: str
    layers: list[str] | None
    first: NDArray[Any]
    second: NDArray[Any]


def _columns(first: Run, second: Run) -> list[_Column]:
    """In the order in which a step computes them."""
    layers = [name for name in first.layers if name in second.layers]
    params = [name for name in first.names if name in second.names]
    back = params[::-1]

    def of(names: list[str], of_run: str, values: str) -> tuple[NDArray[Any], NDArray[Any]]:
        runs = (first, second)
        picked = [getattr(run, values)[:, [getattr(run, of_run).index(name) for name in names]] for run in runs]
        return picked[0], picked[1]

    groups = min(first.lr.shape[1], second.lr.shape[1])
    return [
        _Column("outputs", "largest output", layers, *of(layers, "layers", "activation_abs_max")),
        _Column("outputs", "standard deviation of the outputs", layers, *of(layers, "layers", "activation_std")),
        _Column("loss", "loss", None, first.loss[:, None], second.loss[:, None]),
        _Column("gradient", "gradient norm", back, *of(back, "names", "norms")),
        _Column("gradient", "global gradient norm", None, first.grad_norm[:, None], second.grad_norm[:, None]),
        _Column("rate", "learning rate", None, first.lr[:, :groups], second.lr[:, :groups]),
        _Column("weights", "RMS of the weights", params, *of(params, "names", "param_rms")),
    ]


def _first(
    view: View,
    columns: list[_Column],
    steps: NDArray[np.int64],
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    most: float,
) -> Parting | None:
    """The first row at which a column differs by more than `most`, and of its columns the first."""
    found = []
    for place, column in enumerate(columns):
        differs = _difference(column.first[one], column.second[other]) > most
        if differs.any():
            found.append((int(differs.any(axis=1).argmax()), place, differs))
    if not found:
        return None
    row, place, differs = min(found, key=lambda item: item[:2])
    column, index = columns[place], int(differs[row].argmax())
    values = float(column.first[one[row], index]), float(column.second[other[row], index])
    layer = None if column.layers is None else column.layers[index]
    of = f" of {view.name(layer)}" if layer else ""
    text = f"{column.said}{of} {' and '.join(_told_apart(*values))}"
    parting = Parting(int(steps[row]), column.what, layer, text, values)
    by = (
        f", {share(parting.difference)} apart" if np.isfinite(parting.difference) and parting.difference >= 5e-4 else ""
    )
    return Parting(parting.step, parting.what, layer, text + by, values)


def _told_apart(one: float, other: float) -> tuple[str, str]:
    """Both with three digits, or with as many as tell two float32 apart."""
    short = number(one), number(other)
    return short if short[0] != short[1] else (f"{one:.9g}", f"{other:.9g}")


def _difference(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """The distance over the larger one; 0 for two that are no numbers, inf for one."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(other)
    scale = np.maximum(np.abs(one), np.abs(other))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(scale > 0, np.abs(one - other) / scale, 0.0)
    return np.where(finite, ratio, np.where(np.isfinite(one) == np.isfinite(other), 0.0, np.inf))
