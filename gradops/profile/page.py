"""The report as one HTML page that needs nothing else: no network, nothing installed."""

import base64
from html import escape
from pathlib import Path
from typing import Any

from gradops import page
from gradops.profile.loop import NAMES, PHASES
from gradops.profile.phases import PARTS, after_backward, seconds_of, typical
from gradops.profile.result import Result
from gradops.profile.tables import Table
from gradops.profile.timeline import COLOURS, tail
from gradops.profile.trace import Event

HERE = Path(__file__).parent
# The longest ones; a page with all of a large model's would not scroll smoothly.
SHOWN_OPERATORS = 3000


def write(
    path: Path, title: str, facts: list[str], sections: list[tuple[Result | None, list[Table], Path | None]]
) -> None:
    """Writes the page.

    Args:
        path: where to.
        title: what was profiled.
        facts: lines on machine, versions and command.
        sections: of each the result whose timeline is shown, its tables, and its picture.
    """
    body = []
    timelines: list[dict[str, Any]] = []
    for result, tables, picture in sections:
        if result is not None:
            body.append(f'<div class="timeline" data-index="{len(timelines)}"></div>')
            timelines.append({"title": f"batch size {result.batch_size}", "loops": [_loop(result, n) for n in NAMES]})
        body += map(_table, tables)
        if picture is not None:
            encoded = base64.b64encode(picture.read_bytes()).decode()
            body.append(f'<img alt="timelines and memory" src="data:image/png;base64,{encoded}">')
    data = {"timelines": timelines, "colours": COLOURS}
    style, scripts = HERE / "page.css", [HERE / "page.js"]
    page.write(path, title, facts, "\n".join(body), data, style=style, scripts=scripts)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(header)}</th>" for header in table.header)
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(f"<td>{escape(cell).replace('  ', '&emsp;')}</td>" for cell in row)
        rows.append(f"<tr{' class=strong' if index in table.emphasis else ''}>{cells}</tr>")
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    grid = f"<table><thead><tr>{head}</tr></thead>{''.join(rows)}</table>"
    return f'<h2>{escape(table.title)}</h2><div class="wide">{grid}</div>{note}'


def _loop(result: Result, name: str) -> dict[str, Any]:
    """Lanes of [name, start, length] in microseconds, and the memory curve."""
    step = typical(result.trace.steps(name))
    origin = step.whole.start

    def lane(events: list[Event]) -> list[list[Any]]:
        return [[event.name, round(event.start - origin, 1), round(event.length, 1)] for event in events]

    start, end = tail(step)
    after = after_backward(seconds_of(result.costs[name])) * 1e6
    operators = [event for event in step.events if event.category in ("cpu_op", "kernel") and event.length > 0]
    longest = sorted(operators, key=lambda event: -event.length)[:SHOWN_OPERATORS]
    return {
        "name": name,
        "length": step.whole.length,
        "after": {"start": start - origin, "width": end - start, "length": after},
        "lanes": [
            ["phases", lane([event for event in step.events if event.is_range and event.name in PHASES])],
            ["one pass", lane([event for event in step.events if event.is_range and event.name in PARTS])],
            ["operators", lane(sorted(longest, key=lambda event: event.start))],
        ],
        "memory": [[round(moment, 1), taken] for moment, taken in result.memory[name].curve],
    }
