"""The loss of each learning rate, with and without BatchNorm, from the study in studies/."""

import json
import pathlib
import statistics
from typing import Any

from docs.figures.style import LOOKS, PALE, label, new_figure, save

SWEEP = pathlib.Path(__file__).resolve().parents[2] / "studies" / "cap.jsonl"
GUESSING = 0.53
LINES = {
    "not normalised, AdamW": ("12 blocks, not normalised", "AdamW"),
    "BatchNorm, AdamW": ("6 blocks, BatchNorm", "AdamW"),
    "not normalised, capped steps": ("12 blocks, not normalised", "cap 0.1, warm-up 100"),
    "BatchNorm, capped steps": ("6 blocks, BatchNorm", "cap 0.1, warm-up 100"),
}


def draw(path: pathlib.Path) -> dict[str, Any]:
    """Medians over the seeds, and the range between the best and the worst."""
    runs = [json.loads(line) for line in SWEEP.read_text().splitlines()]
    figure, (axes,) = new_figure(7.4, 4.2)
    facts = {}
    for (name, (network, remedy)), look in zip(LINES.items(), LOOKS, strict=True):
        cells: dict[float, list[float]] = {}
        for run in runs:
            if (run["network"], run["remedy"]) == (network, remedy):
                cells.setdefault(run["lr"], []).append(run["loss"])
        rates = sorted(cells)
        middles = [statistics.median(cells[rate]) for rate in rates]
        axes.plot(rates, middles, label=name, **look)
        axes.vlines(
            rates, [min(cells[r]) for r in rates], [min(2, *[max(cells[r])]) for r in rates], color=look["color"]
        )
        facts[name] = {f"{r:g}": [round(m, 3), len(cells[r])] for r, m in zip(rates, middles, strict=True)}
    axes.axhline(GUESSING, color=PALE, linewidth=1, linestyle=":")
    axes.annotate("guessing", (0.0032, GUESSING), va="bottom", color=PALE)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(0.008, 1.1)
    axes.set_yticks([0.01, 0.03, 0.1, 0.3, 1], ["0.01", "0.03", "0.1", "0.3", "1"])
    label(axes, "loss after 320 steps: median and range of 8 seeds", "peak learning rate")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.8))
    save(figure, path)
    return facts
