"""Pieces of the pages: a table, and where the figures of a document come from."""

from typing import Any

from gradops.bench.machine import sentence


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def source(document: dict[str, Any]) -> str:
    """Where, when and how a document of `python -m gradops` was taken."""
    return f"Taken on {document['when'][:10]} with `{document['command']}` on {sentence(document)}."
