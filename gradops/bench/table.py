"""What `python -m gradops bench` prints: a table for each case, in 80 columns."""

from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table

from gradops.bench.formats import duration
from gradops.bench.rows import Row

WIDE = 0.25
Cell = Callable[[Row], str]


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds else "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


_FIRST: tuple[tuple[str, Cell], ...] = (
    ("time", lambda row: _time(row.seconds)),
    ("spread", lambda row: _number(row.spread, ".0%")),
    ("gradops\nis faster", lambda row: f"{row.gradops_speedup:.2f}x" if row.gradops_speedup else ""),
)
_ON_CPU: tuple[tuple[str, Cell], ...] = (
    ("calls", lambda row: _number(row.calls, "d")),
    ("waits", lambda row: _number(row.waits, "d")),
)
_ON_GPU: tuple[tuple[str, Cell], ...] = (
    ("graph\nreplay", lambda row: _time(row.replay_seconds)),
    ("back to\nback", lambda row: _time(row.call_seconds)),
    ("host", lambda row: _time(row.host_seconds)),
    ("launches", lambda row: _number(row.calls, "d")),
    ("waits", lambda row: _number(row.waits, "d")),
)
_LAST: tuple[tuple[str, Cell], ...] = (
    ("bytes/\nparam", lambda row: _number(row.bytes_per_param, "d")),
    ("GB/s", lambda row: _number(row.bytes_per_second and row.bytes_per_second / 1e9, ".3g")),
    ("share", lambda row: _number(row.share_of_stream, ".2f")),
)


def show(console: Console, rows: list[Row], device: str) -> None:
    """Prints the rows of one case and what is to be said about them."""
    first = rows[0]
    console.print(
        f"\n[bold]{first.case}[/bold], {first.optimizer}, {first.params:,} {first.dtype} parameters in "
        f"{first.tensors:,} tensors, {max(len(row.samples) for row in rows)} rounds"
    )
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, padding=0, collapse_padding=True)
    table.add_column("recipe", max_width=22 if device == "cpu" else 17)
    columns = [*_FIRST, *(_ON_GPU if device == "cuda" else _ON_CPU), *_LAST]
    for header, _ in columns:
        table.add_column(header, justify="right")
    for row in rows:
        if not row.failed:
            style = "bold" if row.recipe.startswith("gradops") else None
            table.add_row(row.recipe, *(cell(row) for _, cell in columns), style=style)
    console.print(table)
    for note in notes(rows):
        console.print(note, markup=False)


def notes(rows: list[Row]) -> list[str]:
    """What the figures must not be read without."""
    said = [f"not measured: {row.recipe}: {row.failed}" for row in rows if row.failed]
    said += [f"no graph of {row.recipe}: {row.uncaptured}" for row in rows if row.uncaptured]
    if wide := [row.recipe for row in rows if row.spread and row.spread > WIDE]:
        said.append(f"Wide spread, over {WIDE:.0%}: {'; '.join(wide)}. The machine was not quiet.")
    return said


def legend(device: str) -> str:
    """What the columns mean."""
    called = "launches: kernels" if device == "cuda" else "calls: operators that touch data, a launch or more on a GPU"
    stream = "a copy" if device == "cuda" else "the fastest plain stream"
    return (
        "Times are medians of rounds in which every recipe runs once, in random order; ratios are medians of the "
        "rounds' own; spread: interquartile range over median; "
        f"{called}; waits: values of the device that the host reads; share: of the GB/s of {stream}."
    )
