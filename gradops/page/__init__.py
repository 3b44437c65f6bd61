"""HTML pages that need nothing else: no network, nothing installed; frame, style and zooming are the same on all."""

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def write(
    path: Path, title: str, facts: list[str], body: str, data: dict[str, Any], *, style: Path, scripts: Sequence[Path]
) -> None:
    """Fills the frame and writes the page.

    Args:
        path: where to.
        title: of the page.
        facts: lines below the title.
        body: HTML.
        data: for the scripts, as JSON in the element `data`.
        style: the page's own.
        scripts: the page's own, in their order; they extend `Zoomed`.
    """
    parts = {
        "style": _joined(HERE / "style.css", style),
        "title": escape(title),
        "facts": "<br>".join(map(escape, facts)),
        "body": body,
        "data": json.dumps(data).replace("</", "<\\/"),
        "script": _joined(HERE / "zoomed.js", *scripts),
    }
    # At once, so that a mark in what is filled in is none.
    path.write_text(re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], (HERE / "frame.html").read_text()))


def _joined(*files: Path) -> str:
    return "\n".join(file.read_text().rstrip("\n") for file in files)
