"""fastai's colour plot and gradops' histograms of the same activations, in a healthy run and in one that explodes."""

import pathlib
from typing import Any

import numpy as np
import torch
from fastai.callback.hook import ActivationStats
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import gradops
from docs.figures.style import INK, save
from docs.figures.trainings import SEED, task, trained
from gradops.demo.network import ResidualNet
from gradops.record.run import Run

STEPS = 160
RATES = {"healthy: learning rate up to 0.01": 0.01, "explodes: learning rate up to 0.1": 0.1}
# fastai's histogram: bins over [0, 10].
TOP = 10


def draw(path: pathlib.Path) -> dict[str, Any]:
    """Four rows for the layers -1 and -2, as fastai shows them and as they are; one column per run."""
    figure = Figure(figsize=(9.6, 9), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(4, len(RATES))
    facts = {}
    for column, (name, lr) in enumerate(RATES.items()):
        seen, run, losses = _recorded(lr)
        for row, layer in ((0, "labels"), (2, "head")):
            place = run.layers.index(layer)
            _fastais(panels[row][column], seen[layer], -1 if layer == "labels" else -2)
            _ours(panels[row + 1][column], run, place)
            facts[f"{name}, {layer}"] = _facts(run, place, seen[layer])
        panels[0][column].set_title(f"{name}\nfastai: color_dim(-1), the outputs", loc="left", fontsize=11, color=INK)
        facts[f"{name}, loss of the last 10 steps"] = round(sum(losses[-10:]) / 10, 3)
    save(figure, path)
    return facts


def _recorded(lr: float) -> tuple[dict[str, list[dict[str, Any]]], Run, list[float]]:
    torch.manual_seed(SEED)
    network = ResidualNet()
    optimizer = gradops.wrap(torch.optim.AdamW(network.named_parameters()))
    theirs = ActivationStats(with_hist=True)
    seen: dict[str, list[dict[str, Any]]] = {"labels": [], "head": []}
    for name, values in seen.items():
        network.get_submodule(name).register_forward_hook(lambda m, i, o, v=values: v.append(theirs.hook(m, i, o)))
    with gradops.Recorder(optimizer, network, modules=list(seen), capacity=STEPS) as recorder:
        losses = list(trained(network, optimizer, task(lr), STEPS))
        return seen, recorder.run(), losses


def _fastais(axes: Axes, seen: list[dict[str, Any]], place: int) -> None:
    picture = torch.stack([step["hist"] for step in seen]).t().float().log1p()
    axes.imshow(picture, origin="lower", aspect="auto", extent=(0, len(seen), 0, TOP))
    axes.set_title(f"fastai: color_dim({place}), hidden units before ReLU", loc="left", fontsize=11, color=INK)
    axes.set_ylabel("value", color=INK)


def _ours(axes: Axes, run: Run, place: int) -> None:
    counts = run.activation_histogram[:, place].T
    axes.imshow(np.log1p(counts), origin="lower", aspect="auto", extent=(0, counts.shape[1], 0, len(counts)))
    edges = run.histogram_edges
    wanted = [-1000.0, -10.0, -0.1, 0.0, 0.1, 10.0, 1000.0]
    places = [float(np.abs(edges - value).argmin()) + 1 for value in wanted]
    axes.set_yticks(places, [f"{value:g}" for value in wanted])
    axes.set_title("the same layer, all values", loc="left", fontsize=11, color=INK)
    axes.set_ylabel("value", color=INK)
    axes.set_xlabel("step", color=INK)


def _facts(run: Run, place: int, seen: list[dict[str, Any]]) -> dict[str, float]:
    """Of the last ten steps."""
    shown = float(sum(step["hist"].sum() for step in seen[-10:]))
    counts = float(run.activation_histogram[-10:, place].sum() + run.activation_nonfinite[-10:, place].sum())
    return {
        "near zero by fastai": round(sum(step["near_zero"] for step in seen[-10:]) / 10, 3),
        "negative": round(float(run.activation_negative[-10:, place].mean()), 3),
        "near zero": round(float(run.activation_near_zero[-10:, place].mean()), 3),
        "in fastai's picture": round(shown / counts, 3),
        "std": round(float(run.activation_std[-10:, place].mean()), 3),
    }
