"""A recorded training run: arrays per step, per parameter and per layer, and the file that holds them."""

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from gradops import shortcuts
from gradops.notebook import html_or_none
from gradops.record.samples import of_row

if TYPE_CHECKING:
    from gradops.diagnose import Comparison

FORMAT_VERSION = 2
# Files of these can be read; the first has no losses' flags, samples or modules.
READABLE = (1, 2)
# Written as JSON, all other fields as arrays.
IN_JSON = ("about", "modules", "running")


@dataclass(repr=False)
class Run:
    """What a `gradops.Recorder` saw, oldest step first: S steps, P parameters, G groups, L layers, B histogram bins.

    Per-parameter columns follow `names`, the order in which the model defines them; what a step did not measure (a
    skipped step's update, a loss nobody gave) is NaN.

    Attributes:
        names: [P] the parameters' names. sizes: [P] int64, their elements. groups: [P] int64, their group.
        layers: [L] the names of the modules whose outputs were watched; empty without a model.
        steps: [S] int64, the attempted step, counted from 0, skipped ones included.
        grad_norm: [S] float32, the global norm before clipping; inf or NaN where the step found one.
        clip_coef: [S] float32, what the gradients were multiplied by.
        loss: [S] float32. loss_scale: [S] float32. skipped: [S] bool, for an inf or NaN or by a `SpikeGuard`.
        lr: [S, G] float32, with the guard's cut.
        norms: [S, P] float32, gradient norms. abs_max: [S, P] float32. nonfinite: [S, P] int64, elements.
        update_ratio: [S, P] float32, the update's norm over the parameter's. param_rms: [S, P] float32.
        capped: [S, P] bool, whether `max_relative_step` bound.
        activation_mean, activation_std, activation_abs_max: [S, L] float32, of the finite values.
        activation_near_zero, activation_negative: [S, L] float32, shares of all values.
        activation_nonfinite: [S, L] int64, elements.
        activation_histogram: [S, L, B] int64, counts of the finite values between the edges, the outermost bins open.
        histogram_edges: [B - 1] float32, the inner edges, ascending, negative ones included.
        about: settings and versions: "max_norm", "loss_scale" (policy), "min_scale", "optimizer", "by_gradient"
            (whether its updates have the size of the gradients), "torch", "device".
        has_loss: [S] bool, whether a loss was given; None for a record that does not say, in which a NaN among losses
            is one and no losses at all are none.
        samples: [S, B] int64 or str, the samples of each step's batch, -1 or "" where it had fewer; B is 0 where nobody
            gave them. `run.batch(row)` lists one step's.
        modules: types of the model's modules by their names. running: names of those with running
            statistics that `protect` does not put back.
    """

    names: list[str]
    sizes: NDArray[np.int64]
    groups: NDArray[np.int64]
    layers: list[str]
    steps: NDArray[np.int64]
    grad_norm: NDArray[np.float32]
    clip_coef: NDArray[np.float32]
    loss: NDArray[np.float32]
    loss_scale: NDArray[np.float32]
    skipped: NDArray[np.bool_]
    lr: NDArray[np.float32]
    norms: NDArray[np.float32]
    abs_max: NDArray[np.float32]
    nonfinite: NDArray[np.int64]
    update_ratio: NDArray[np.float32]
    param_rms: NDArray[np.float32]
    capped: NDArray[np.bool_]
    activation_mean: NDArray[np.float32]
    activation_std: NDArray[np.float32]
    activation_abs_max: NDArray[np.float32]
    activation_near_zero: NDArray[np.float32]
    activation_negative: NDArray[np.float32]
    activation_nonfinite: NDArray[np.int64]
    activation_histogram: NDArray[np.int64]
    histogram_edges: NDArray[np.float32]
    about: dict[str, Any] = field(default_factory=dict)
    has_loss: NDArray[np.bool_] | None = None
    samples: NDArray[Any] | None = None
    modules: dict[str, str] = field(default_factory=dict)
    running: list[str] = field(default_factory=list)

    def batch(self, row: int) -> list[int] | list[str]:
        """The samples of a row's batch; empty where nobody gave them."""
        return [] if self.samples is None else of_row(self.samples[row])

    def compare(self, other: "Run") -> "Comparison":
        """Where this run and another part: at which step, in which layer, by how much. Print it, or `plot()` it.

        Raises:
            ModuleNotFoundError: the extra `report` is not installed.
            ValueError: the runs have no step in common.
        """
        return shortcuts.comparison(self, other, "Run.compare")

    def __repr__(self) -> str:
        ends = f", {self.steps[0]} to {self.steps[-1]}" if len(self.steps) else ""
        watched = f", outputs of {len(self.layers)} layers" if self.layers else ""
        return f"<gradops Run: {len(self.steps)} steps{ends}; {len(self.names)} parameters{watched}>"

    def _repr_html_(self) -> str | None:
        if not len(self.steps):
            return None
        return html_or_none(lambda: shortcuts.report(self, "A run's picture")._html())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file; whoever reads `path` meanwhile, or after a crash, finds the old file or the new one."""
        arrays = {column.name: getattr(self, column.name) for column in fields(self) if column.name not in IN_JSON}
        arrays = {name: values for name, values in arrays.items() if values is not None}
        more = {"modules": self.modules, "running": self.running, "format_version": FORMAT_VERSION}
        about = json.dumps({**self.about, **more})
        unfinished = Path(f"{os.fspath(path)}.{os.getpid()}.part")
        try:
            with unfinished.open("wb") as file:
                np.savez_compressed(file, about=about, **arrays)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Run":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no run of this format.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays.pop("about")))
            version = about.pop("format_version")
            more = {name: about.pop(name) for name in IN_JSON if name in about}
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no file {path}; gradops.Recorder(path=...) writes one") from None
        except PermissionError:
            raise
        except (KeyError, ValueError, OSError, BadZipFile) as error:
            raise ValueError(f"{path} is no recorded run; pass a file that gradops.Recorder(path=...) wrote") from error
        if version not in READABLE:
            raise ValueError(f"{path} has format {version}, this gradops reads {FORMAT_VERSION}")
        columns: dict[str, Any] = {**arrays, "about": about, **more}
        for name in ("names", "layers"):
            columns[name] = [str(value) for value in columns[name]]
        return cls(**columns)
