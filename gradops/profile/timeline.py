"""One typical step of each loop as a timeline, and the picture of both."""

import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from gradops.bench.formats import duration
from gradops.profile.loop import NAMES, PHASES, UPDATE
from gradops.profile.phases import PARTS, after_backward, seconds_of, typical
from gradops.profile.result import Result
from gradops.profile.trace import Event, Step

# Okabe and Ito's colours: cool ones for the model, warm ones for what comes after the backward pass.
COLOURS = {
    "forward": "#56B4E9",
    "backward": "#0072B2",
    "unscale": "#F0E442",
    "norm": "#E69F00",
    "clip": "#D55E00",
    "optimizer": "#CC79A7",
    "scale update": "#8c564b",
    "zero_grad": "#BBBBBB",
    "gradops.follow_params": "#999999",
    "gradops.grad_stats": "#E69F00",
    "gradops.param_stats": "#F0E442",
    "gradops.update": "#882255",
    "gradops.one_pass_step": "#882255",
    "gradops.write_stats": "#999999",
}
SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
INK, PALE = "#333333", "#777777"
# Of the width of a panel: below it a name does not fit into its bar.
NAMED = 0.13


def ranges(step: Step, names: tuple[str, ...]) -> list[Event]:
    """The step's ranges of these names, in order."""
    return [event for event in step.events if event.is_range and event.name in names]


def draw(result: Result, title: str, source: str, path: Path) -> None:
    """Writes the picture to `path`, in the format its suffix names."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 2, width_ratios=(2, 1.3), height_ratios=(1, 1, 1.4))
    steps = {name: typical(result.trace.steps(name)) for name in NAMES}
    tails = {name: tail(step) for name, step in steps.items()}
    longest = max(step.whole.length for step in steps.values())
    longest_tail = max(end - start for start, end in tails.values())
    for row, name in enumerate(NAMES):
        step, (start, _) = steps[name], tails[name]
        _lanes(panels[row, 0], step, (PHASES,), step.whole.start, longest)
        _lanes(panels[row, 1], step, (UPDATE, PARTS), start, longest_tail)
        after = duration(after_backward(seconds_of(result.costs[name])))
        titles = (f"{name}: {_length(step.whole.length)}", f"{name}, after the backward pass: {after}")
        for axes, text in zip(panels[row], titles, strict=True):
            axes.set_title(text, loc="left", fontsize=11, color=INK)
    _memory(panels[2, 0], result, dict.fromkeys(NAMES, 0.0), longest)
    _memory(panels[2, 1], result, {name: tails[name][0] - steps[name].whole.start for name in NAMES}, longest_tail)
    figure.legend(handles=_legend(steps.values()), loc="outside lower right", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(f"One step, {title}", fontsize=13, color=INK, x=0.01, ha="left")
    figure.supxlabel(
        "\n".join(textwrap.fill(line, 100) for line in source.splitlines()), fontsize=7.5, color=PALE, x=0.01, ha="left"
    )
    figure.savefig(path, dpi=130)


def _length(microseconds: float) -> str:
    return duration(microseconds * 1e-6)


def tail(step: Step) -> tuple[float, float]:
    """Beginning and end of what comes between the last backward pass and zero_grad."""
    after = ranges(step, UPDATE)
    return (after[0].start, after[-1].end)


def _lanes(axes: Axes, step: Step, lanes: tuple[tuple[str, ...], ...], origin: float, width: float) -> None:
    """A lane of bars for each tuple of names, those that have any, from the top."""
    found = [events for names in lanes if (events := ranges(step, names))]
    for lane, events in enumerate(found):
        for event in events:
            left, colour = event.start - origin, COLOURS[event.name]
            axes.broken_barh([(left, event.length)], (lane, 0.92), facecolors=colour, linewidth=0)
            if event.length > NAMED * width:
                ink = "white" if event.name in ("backward", "clip", "gradops.update", "gradops.one_pass_step") else INK
                middle = left + event.length / 2
                axes.text(middle, lane + 0.46, _short(event), ha="center", va="center", fontsize=8.5, color=ink)
        if all(event.length <= NAMED * width for event in events):
            names = ", ".join(dict.fromkeys(map(_short, events)))
            end = events[-1].end - origin
            axes.text(end + 0.01 * width, lane + 0.46, names, va="center", fontsize=8.5, color=PALE)
    axes.set_ylim(len(found), 0)
    _bare(axes, width)
    axes.tick_params(labelbottom=False)
    axes.set_yticks([])


def _short(event: Event) -> str:
    return event.name.removeprefix("gradops.")


def _memory(axes: Axes, result: Result, origins: dict[str, float], width: float) -> None:
    size = next((size for size in SIZES if result.memory["torch"].peak >= size[1]), SIZES[-1])
    for name, colour, dashes in (("torch", "#D55E00", "-"), ("gradops", "#0072B2", (0, (3, 1)))):
        memory = result.memory[name]
        points = [(moment - origins[name], taken / size[1]) for moment, taken in memory.curve]
        axes.step(*zip(*points, strict=True), where="post", color=colour, linewidth=1.8, linestyle=dashes, label=name)
    axes.set_title(f"memory, {size[0]}", loc="left", fontsize=11, color=INK)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    _bare(axes, width)


def _bare(axes: Axes, width: float) -> None:
    axes.set_xlim(0, width)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _length(value) if value else "0"))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=PALE, labelsize=8.5, left=False)


def _legend(steps: Any) -> list[Patch]:
    there = {event.name for step in steps for event in ranges(step, PHASES)}
    return [Patch(color=COLOURS[name], label=name) for name in PHASES if name in there]
