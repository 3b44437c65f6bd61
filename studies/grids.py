"""What studies/sweep.py runs: remedies, networks, and the cells of each study, as data."""

import functools
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from gradops import RelativeStepCap, SpikeGuard
from gradops.demo.network import ResidualNet
from studies.agc import AdaptiveGradientClip
from studies.residual_mlp import ResidualMLP
from studies.zclip import ZClip

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Remedy:
    """What is added to the optimizer.

    Args:
        settings: keywords of `gradops.wrap`.
        hook: makes what is done to the gradients before each step.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    hook: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Cell:
    """A column of a table: a network, its learning rate's peak, and how many batches are bad."""

    network: str
    lr: float
    bad_batches: int = 0

    @property
    def heading(self) -> str:
        return f"lr {self.lr:g}" + (f", {self.bad_batches} bad batches" if self.bad_batches else "")


@dataclass(frozen=True)
class Study:
    """Remedies by cells, in the order of the runs: what answers most comes first.

    Args:
        later_remedies: those whose runs come after all the others'.
        steps: length of a run.
        batch_size: pictures per step.
        results: where each finished run is a JSON line.
        page: where the table stands.
        optimizer: a key of `OPTIMIZERS`.
    """

    name: str
    remedies: dict[str, Remedy]
    cells: tuple[Cell, ...]
    later_remedies: tuple[str, ...]
    steps: int
    batch_size: int
    results: pathlib.Path
    page: pathlib.Path
    optimizer: str = "AdamW"


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "SGD": functools.partial(torch.optim.SGD, momentum=0.9),
}
# Networks of convolutions learn the demo's canvases, those of linear layers single digits.
NETWORKS: dict[str, Callable[[], ResidualNet | ResidualMLP]] = {
    "12 blocks, not normalised": lambda: ResidualNet(12, normalise=False),
    "6 blocks, BatchNorm": lambda: ResidualNet(6, normalise=True),
    "12 linear blocks, not normalised": lambda: ResidualMLP(12, normalise=False),
    "6 linear blocks, BatchNorm": lambda: ResidualMLP(6, normalise=True),
}
PLAIN, NORMALISED, LINEAR_PLAIN, LINEAR_NORMALISED = NETWORKS


def _warm_cap(cap: float) -> dict[str, Any]:
    return {"max_relative_step": RelativeStepCap(cap, warmup_steps=100)}


WARM_CAP = _warm_cap(0.1)

CAP = Study(
    "cap",
    remedies={
        "AdamW": Remedy(),
        "cap 0.05": Remedy({"max_relative_step": RelativeStepCap(0.05)}),
        "cap 0.1, warm-up 50": Remedy({"max_relative_step": RelativeStepCap(0.1, warmup_steps=50)}),
        "cap 0.1, warm-up 100": Remedy(WARM_CAP),
        "cap 0.05, floor 0.03": Remedy({"max_relative_step": RelativeStepCap(0.05, floor=0.03)}),
        "clip 0.3": Remedy({"max_norm": 0.3}),
    },
    cells=(
        Cell(PLAIN, 0.01),
        Cell(PLAIN, 0.3),
        Cell(NORMALISED, 0.01),
        Cell(PLAIN, 0.1),
        Cell(PLAIN, 1.0),
        Cell(NORMALISED, 0.03),
        Cell(NORMALISED, 0.003),
        Cell(NORMALISED, 0.1),
    ),
    later_remedies=("cap 0.05, floor 0.03", "clip 0.3"),
    steps=320,
    batch_size=64,
    results=ROOT / "studies" / "cap.jsonl",
    page=ROOT / "docs" / "relative-step.md",
)


def _guard(action: str, **arguments: float) -> dict[str, Any]:
    return {"guard": SpikeGuard(action, **arguments)}


SPIKES = Study(
    "spikes",
    remedies={
        "AdamW": Remedy(),
        "guard: skip and cut": Remedy(_guard("skip")),
        "guard: skip alone": Remedy(_guard("skip", lr_cut=1.0)),
        "guard: clip and cut": Remedy(_guard("clip")),
        "cap 0.1, warm-up 100": Remedy(WARM_CAP),
        "clip 0.3": Remedy({"max_norm": 0.3}),
        "cap and guard: skip and cut": Remedy({**WARM_CAP, **_guard("skip")}),
        "ZClip": Remedy(hook=ZClip),
        "AGC 0.02": Remedy(hook=AdaptiveGradientClip),
        "guard: z-score 8": Remedy(_guard("skip", ratio=1.5, z_score=8.0)),
    },
    cells=(
        Cell(PLAIN, 0.01, bad_batches=3),
        Cell(PLAIN, 0.1),
        Cell(NORMALISED, 0.01, bad_batches=3),
        Cell(NORMALISED, 0.1),
        Cell(PLAIN, 0.01),
        Cell(NORMALISED, 0.01),
        Cell(LINEAR_PLAIN, 0.01, bad_batches=3),
        Cell(LINEAR_PLAIN, 0.1),
        Cell(LINEAR_NORMALISED, 0.01, bad_batches=3),
        Cell(LINEAR_PLAIN, 0.01),
        Cell(LINEAR_NORMALISED, 0.1),
        Cell(LINEAR_NORMALISED, 0.01),
    ),
    later_remedies=(),
    steps=160,
    batch_size=32,
    results=ROOT / "studies" / "spikes.jsonl",
    page=ROOT / "docs" / "spike-guard.md",
)

SGD = Study(
    "sgd",
    remedies={
        "SGD": Remedy(),
        **{f"cap {cap}, warm-up 100": Remedy(_warm_cap(cap)) for cap in (0.01, 0.02, 0.05, 0.1, 0.2)},
    },
    cells=(
        Cell(LINEAR_PLAIN, 3.0),
        Cell(LINEAR_NORMALISED, 3.0),
        Cell(LINEAR_PLAIN, 1.0),
        Cell(LINEAR_NORMALISED, 1.0),
        Cell(LINEAR_PLAIN, 0.3),
        Cell(LINEAR_NORMALISED, 0.3),
        Cell(PLAIN, 1.0),
        Cell(NORMALISED, 1.0),
        Cell(PLAIN, 0.3),
    ),
    later_remedies=(),
    steps=160,
    batch_size=32,
    results=ROOT / "studies" / "sgd.jsonl",
    page=ROOT / "docs" / "relative-step.md",
    optimizer="SGD",
)
STUDIES = {study.name: study for study in (CAP, SPIKES, SGD)}
