"""Where a record can go besides its file: dictionaries for loggers, CSV, TensorBoard."""

import csv
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from gradops.record.run import Run

PER_STEP = ("loss", "grad_norm", "clip_coef", "loss_scale", "skipped")
PER_PARAM = ("norms", "abs_max", "nonfinite", "update_ratio", "param_rms", "capped")
PER_LAYER = ("mean", "std", "abs_max", "near_zero", "negative", "nonfinite")


def rows(run: Run, first: int = 0) -> Iterator[dict[str, float]]:
    """One flat dictionary of numbers a step: the form for loggers such as W&B, and for CSV.

    The keys are the same for every step: "step", the names of `PER_STEP`, "lr" (of several groups "lr/<group>"),
    "<column>/<parameter>", and "activation_<column>/<layer>". NaN stands for what was not measured.

    Args:
        run: the record.
        first: index of the first step to give.
    """
    rates = ["lr"] if run.lr.shape[1] == 1 else [f"lr/{group}" for group in range(run.lr.shape[1])]
    tables = [(rates, run.lr)]
    tables += [([f"{column}/{name}" for name in run.names], getattr(run, column)) for column in PER_PARAM]
    for column in PER_LAYER:
        keys = [f"activation_{column}/{layer}" for layer in run.layers]
        tables.append((keys, getattr(run, f"activation_{column}")))
    tables = [(keys, values.astype(int) if values.dtype == bool else values) for keys, values in tables]
    for index in range(first, len(run.steps)):
        row: dict[str, float] = {"step": int(run.steps[index])}
        row |= {name: +getattr(run, name)[index].item() for name in PER_STEP}
        for keys, values in tables:
            row |= zip(keys, values[index].tolist(), strict=True)
        yield row


class CsvFile:
    """A `callback` for a Recorder that writes a line for each step; parameters that come later have no column.

    Args:
        path: the file, which is begun anew.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "w", newline="")  # noqa: SIM115
        self._writer: csv.DictWriter[str] | None = None

    def __call__(self, row: dict[str, float]) -> None:
        if self._writer is None:
            self._writer = csv.DictWriter(self._file, list(row), extrasaction="ignore")
            self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def write_tensorboard(run: Run, writer: Any, first: int = 0) -> None:
    """Writes scalars, and histograms of the layers' activations, to a `torch.utils.tensorboard.SummaryWriter`.

    Args:
        run: the record.
        writer: the writer.
        first: index of the first step to write.
    """
    for row in rows(run, first):
        step = int(row.pop("step"))
        for tag, value in row.items():
            if not math.isnan(value):
                writer.add_scalar(tag, value, step)
    edges = [float(edge) for edge in run.histogram_edges]
    for index in range(first, len(run.steps)):
        for place, layer in enumerate(run.layers):
            counts = run.activation_histogram[index, place]
            if counts.any():
                _add_histogram(writer, f"activations/{layer}", run, index, place, edges)


def _add_histogram(writer: Any, tag: str, run: Run, index: int, place: int, edges: list[float]) -> None:
    counts = run.activation_histogram[index, place]
    number = int(counts.sum())
    measures = (run.activation_mean, run.activation_std, run.activation_abs_max)
    # Of float32's overflow: a sum over values that are finite each may be none.
    mean, std, largest = (float(np.nan_to_num(values[index, place], nan=0.0)) for values in measures)
    writer.add_histogram_raw(
        tag,
        min=-largest,
        max=largest,
        num=number,
        sum=mean * number,
        sum_squares=(std**2 + mean**2) * number,
        bucket_limits=[*edges, max(largest, 2 * edges[-1])],
        bucket_counts=counts.tolist(),
        global_step=int(run.steps[index]),
    )
