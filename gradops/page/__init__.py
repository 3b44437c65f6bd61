"""HTML pages that need nothing else: no network, nothing installed; style and zooming are the same on all of them."""

import json
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def write(path: Path, template: Path, title: str, facts: list[str], body: str, data: dict[str, Any]) -> None:
    """Fills a template and writes the page.

    Args:
        path: where to.
        template: the page's own part: its style, its markup and its script, which reads `data` and extends `Zoomed`.
        title: of the page.
        facts: lines below the title.
        body: HTML.
        data: for the script, as JSON.
    """
    text = template.read_text()
    for mark, value in (
        ("{{style}}", (HERE / "style.css").read_text()),
        ("{{zoomed}}", (HERE / "zoomed.js").read_text()),
        ("{{title}}", escape(title)),
        ("{{facts}}", "<br>".join(map(escape, facts))),
        ("{{body}}", body),
        ("{{data}}", json.dumps(data).replace("</", "<\\/")),
    ):
        text = text.replace(mark, value)
    path.write_text(text)
