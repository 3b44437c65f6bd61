"""What a notebook shows: HTML with pictures inside it, which needs no file beside it and no display to be set up."""

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradops.figure import Picture


def html_or_none(make: Callable[[], str]) -> str | None:
    """The HTML, or None, for which a notebook shows the `repr`, where matplotlib or rich are not installed."""
    try:
        return make()
    except ModuleNotFoundError:
        return None


def image(figure: "Picture", words: str) -> str:
    """A picture, with words for those who cannot see it."""
    data = base64.b64encode(figure.png()).decode()
    return f'<img style="max-width: 100%" alt="{escape(words)}" src="data:image/png;base64,{data}">'


def heading(text: str) -> str:
    return f"<h4>{escape(text)}</h4>"


def paragraph(text: str) -> str:
    return f"<p>{with_code(text)}</p>"


def listed(texts: Iterable[str]) -> str:
    """A list of these lines, which are HTML."""
    return f"<ul>{''.join(f'<li>{text}</li>' for text in texts)}</ul>"


def with_code(text: str) -> str:
    """HTML of a sentence whose names stand between backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
