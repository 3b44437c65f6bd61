"""What benchmarks/sweep.py runs: remedies, networks, and the cells of each study, as data."""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.agc import AdaptiveGradientClip
from benchmarks.residual_mlp import ResidualMLP
from benchmarks.zclip import ZClip
from gradops import RelativeStepCap, SpikeGuard
from gradops.demo.network import ResidualNet

ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Rule:
    """What is added to AdamW.

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
    """Rules by cells, in the order of the runs: what tells most comes first.

    Args:
        later_rules: rules whose runs come after all the others'.
        steps: length of a run.
        batch_size: pictures per step.
        results: where each finished run is a JSON line.
        page: where the table stands.
    """

    name: str
    rules: dict[str, Rule]
    cells: tuple[Cell, ...]
    later_rules: tuple[str, ...]
    steps: int
    batch_size: int
    results: pathlib.Path
    page: pathlib.Path


# Networks of convolutions learn the demo's canvases, those of linear layers single digits.
NETWORKS: dict[str, Callable[[], ResidualNet | ResidualMLP]] = {
    "12 blocks, not normalised": lambda: ResidualNet(12, normalise=False),
    "6 blocks, BatchNorm": lambda: ResidualNet(6, normalise=True),
    "12 linear blocks, not normalised": lambda: ResidualMLP(12, normalise=False),
    "6 linear blocks, BatchNorm": lambda: ResidualMLP(6, normalise=True),
}
PLAIN, NORMALISED, LINEAR_PLAIN, LINEAR_NORMALISED = NETWORKS
WARM_CAP = {"max_relative_step": RelativeStepCap(0.1, warmup_steps=100)}

CAP = Study(
    "cap",
    rules={
        "AdamW": Rule(),
        "cap 0.05": Rule({"max_relative_step": RelativeStepCap(0.05)}),
        "cap 0.1, warm-up 50": Rule({"max_relative_step": RelativeStepCap(0.1, warmup_steps=50)}),
        "cap 0.1, warm-up 100": Rule(WARM_CAP),
        "cap 0.05, floor 0.03": Rule({"max_relative_step": RelativeStepCap(0.05, floor=0.03)}),
        "clip 0.3": Rule({"max_norm": 0.3}),
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
    later_rules=("cap 0.05, floor 0.03", "clip 0.3"),
    steps=320,
    batch_size=64,
    results=ROOT / "benchmarks" / "sweep.jsonl",
    page=ROOT / "docs" / "relative-step.md",
)


def _guard(action: str, **arguments: float) -> dict[str, Any]:
    return {"guard": SpikeGuard(action, **arguments)}


SPIKES = Study(
    "spikes",
    rules={
        "AdamW": Rule(),
        "guard: skip and cut": Rule(_guard("skip")),
        "guard: skip alone": Rule(_guard("skip", lr_cut=1.0)),
        "guard: clip and cut": Rule(_guard("clip")),
        "cap 0.1, warm-up 100": Rule(WARM_CAP),
        "clip 0.3": Rule({"max_norm": 0.3}),
        "cap and guard: skip and cut": Rule({**WARM_CAP, **_guard("skip")}),
        "ZClip": Rule(hook=ZClip),
        "AGC 0.02": Rule(hook=AdaptiveGradientClip),
        "guard: z-score 8": Rule(_guard("skip", ratio=1.5, z_score=8.0)),
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
    later_rules=(),
    steps=160,
    batch_size=32,
    results=ROOT / "benchmarks" / "results" / "spikes.jsonl",
    page=ROOT / "docs" / "spike-guard.md",
)
STUDIES = {study.name: study for study in (CAP, SPIKES)}
