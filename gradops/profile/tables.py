"""The report's tables, written once for the terminal and for the HTML page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradops.bench.formats import duration
from gradops.bench.formats import memory as size
from gradops.profile.loop import NAMES, PHASES, UPDATE, Record
from gradops.profile.phases import OTHER, PARTS, Cost, after_backward, seconds_of, whole
from gradops.profile.result import Result, trajectory

WIDE = 0.25
SHOWN_EVENTS = 12
SHOWN_PARAMS = 3
IN_THE_PASS = "in one pass"


@dataclass(frozen=True)
class Table:
    """Cells are text; all columns but the first are numbers. `emphasis` are rows that stand out."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    emphasis: frozenset[int] = frozenset()
    note: str = ""


def of_result(result: Result, device: str) -> list[Table]:
    """All tables of one batch size."""
    return [where_time_goes(result), launches(result, device), peak_memory(result), loss_scale(result)]


def where_time_goes(result: Result) -> Table:
    """Times and shares of a step's phases, then of the parts of the one pass, then of the whole step."""
    theirs, ours = (result.costs[name] for name in NAMES)
    seconds = {name: seconds_of(result.costs[name]) for name in NAMES}
    totals = [whole(seconds[name]) for name in NAMES]
    rows: list[tuple[str, ...]] = []
    for name in (*PHASES, OTHER):
        if name in theirs or name in ours:
            cells = (*_time(theirs.get(name), totals[0]), *_time(ours.get(name), totals[1], name))
            rows.append((name, *cells))
        if name == "optimizer":
            rows += [(f"  {part}", "", "", *_time(ours[part], totals[1])) for part in PARTS if part in ours]
    update = [after_backward(seconds[name]) for name in NAMES]
    first = len(rows)
    rows.append(("unscale to scale update", *_time(Cost(update[0]), totals[0]), *_time(Cost(update[1]), totals[1])))
    rows.append(("step, profiled", *_time(Cost(totals[0]), totals[0]), *_time(Cost(totals[1]), totals[1])))
    medians = [result.samples[name].median for name in NAMES]
    rows.append(("step, not profiled", duration(medians[0]), "", duration(medians[1]), ""))
    speeds = [f"{result.images_per_second(name):,.1f}" for name in NAMES]
    rows.append(("images per second", speeds[0], "", speeds[1], ""))
    return Table(
        f"Where the time goes, batch size {result.batch_size}",
        ("phase", "torch", "share", "gradops", "share"),
        rows,
        frozenset(range(first, len(rows))),
        verdict(result, seconds),
    )


def _time(cost: Cost | None, total: float, name: str = "") -> tuple[str, str]:
    if cost is None:
        return (IN_THE_PASS, "") if name in UPDATE else ("", "")
    return duration(cost.seconds), f"{cost.seconds / total:.1%}"


def verdict(result: Result, seconds: Mapping[str, Mapping[str, float]]) -> str:
    """What gradops changes, and what the figures must not be read without.

    Args:
        result: of both loops.
        seconds: of a profiled step, by loop and phase.
    """
    theirs, ours = (result.samples[name].spread for name in NAMES)
    rounds = len(result.samples["torch"].seconds)
    overhead = max(result.profiler_overhead(name) for name in NAMES)
    said = [
        claim(result.speedup_quartiles, seconds),
        f"Spread of the steps: {theirs:.0%} and {ours:.0%} of the median, {rounds} rounds.",
        f"Profiled steps take {overhead:+.0%}.",
    ]
    if max(theirs, ours) > WIDE:
        said.append("That is a wide spread: the machine was not quiet.")
    return " ".join(said)


def claim(quartiles: Sequence[float], seconds: Mapping[str, Mapping[str, float]]) -> str:
    """How much faster steps are, what comes after the backward pass is, and how fast that alone can make steps.

    Args:
        quartiles: of the times of whole steps with torch over those with gradops.
        seconds: of a profiled step, by loop and phase.
    """
    low, middle, high = quartiles
    steps = f"{_compare(middle)} with gradops (quartiles {low:.2f} and {high:.2f})"
    said = f"Steps cannot be told apart: they are {steps}." if low <= 1 <= high else f"Steps are {steps}."
    step, (theirs, ours) = whole(seconds["torch"]), (after_backward(seconds[name]) for name in NAMES)
    after = f"{_compare(theirs / ours)} ({duration(theirs)} to {duration(ours)}, profiled)"
    bound = step / max(step - theirs + ours, 1e-9)
    return (
        f"{said} What comes after the backward pass is {after}. "
        f"It is {theirs / step:.1%} of a step, which makes steps {bound:.2f} times as fast at most: more is noise."
    )


def _compare(ratio: float) -> str:
    return f"{ratio:.2f} times as fast"


def launches(result: Result, device: str) -> Table:
    """What the host asks for and waits for."""
    theirs, ours = (result.costs[name] for name in NAMES)
    on_gpu = device == "cuda"
    counted = "launches" if on_gpu else "operators"
    own = (counted, "waits", "host", "device") if on_gpu else (counted, "reads")
    rows = []
    for name in (*PHASES, OTHER):
        if name in theirs or name in ours:
            rows.append((name, *_asked(theirs.get(name), on_gpu), *_asked(ours.get(name), on_gpu)))
    kernels = "kernels launched" if on_gpu else "operators that touch data, and calls of the one pass"
    waits = "waits: synchronisations" if on_gpu else "reads: tensors whose value Python asks for, a wait on a GPU"
    return Table(
        "What the host asks for: torch, then gradops",
        ("phase", *own, *own),
        rows,
        note=f"{counted}: {kernels}; {waits}.",
    )


def _asked(cost: Cost | None, on_gpu: bool) -> tuple[str, ...]:
    if cost is None:
        return ("",) * (4 if on_gpu else 2)
    counts = (f"{cost.launches:,}", str(cost.waits))
    return (*counts, duration(cost.seconds), duration(cost.device_seconds)) if on_gpu else counts


def peak_memory(result: Result) -> Table:
    """What is taken for what, then the peak of each phase."""
    found = [result.memory[name] for name in NAMES]
    rows = [
        ("parameters and buffers", *(size(memory.params) for memory in found)),
        ("optimizer state", *(size(memory.state) for memory in found)),
        ("gradients", *(size(memory.grads) for memory in found)),
        ("activations", *(size(memory.activations) for memory in found)),
        ("temporaries after backward", *(size(memory.temporaries) for memory in found)),
    ]
    for name in PHASES:
        if any(name in memory.peaks for memory in found):
            cells = (size(memory.peaks[name]) if name in memory.peaks else IN_THE_PASS for memory in found)
            rows.append((f"peak in {name}", *cells))
    rows.append(("peak", *(size(memory.peak) for memory in found)))
    return Table("Memory", ("what", *NAMES), rows, frozenset({len(rows) - 1}))


def loss_scale(result: Result) -> Table:
    """Loss scale, skipped steps, and where inf and NaN came from."""
    rows = [
        ("loss scale", *(trajectory(result.records[name]) for name in NAMES)),
        ("skipped steps", *(_skipped(result.records[name]) for name in NAMES)),
        ("last loss", *(f"{result.records[name][-1].loss:.4g}" for name in NAMES)),
    ]
    events = list(nonfinite_events(result.records["gradops"]))
    rows += [(f"inf or NaN in step {step}", "not known", names) for step, names in events[:SHOWN_EVENTS]]
    more = f"{len(events) - SHOWN_EVENTS} more steps had inf or NaN." if len(events) > SHOWN_EVENTS else ""
    return Table("Loss scale and non-finite gradients", ("what", *NAMES), rows, note=more)


def _skipped(records: list[Record]) -> str:
    steps = [str(step) for step, record in enumerate(records, 1) if record.skipped]
    return f"{len(steps)} of {len(records)}" + (f" ({', '.join(steps[:SHOWN_EVENTS])})" if steps else "")


def nonfinite_events(records: Iterable[Record]) -> Iterable[tuple[int, str]]:
    """The steps in which gradients were inf or NaN, from 1, with the parameters that had the most."""
    for step, record in enumerate(records, 1):
        if record.nonfinite:
            worst = sorted(record.nonfinite.items(), key=lambda item: -item[1])
            names = ", ".join(f"{name}: {count:,}" for name, count in worst[:SHOWN_PARAMS])
            more = len(worst) - SHOWN_PARAMS
            yield step, names + (f" and {more} more parameters" if more > 0 else "")


def batch_sizes(results: list[Result]) -> Table:
    """The effect of the batch size."""
    rows = []
    for result in results:
        times = [duration(result.samples[name].median) for name in NAMES]
        speeds = [f"{result.images_per_second(name):,.1f}" for name in NAMES]
        peaks = [size(result.memory[name].peak) for name in NAMES]
        rows.append((str(result.batch_size), *times, f"{result.speedup:.2f}x", *speeds, *peaks))
    header = ("batch", "torch", "gradops", "faster", "torch/s", "gradops/s", "torch mem", "gradops mem")
    return Table("Batch sizes", header, rows, note="/s: images per second; mem: peak memory.")
