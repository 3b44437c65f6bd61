"""The figures of docs/scale.md: sharded steps as they were measured, and what follows for many ranks."""

import math
from typing import Any

from benchmarks.gpu_tables import markdown
from gradops.bench.machine import sentence
from gradops.bench.units import duration, memory

RANKS = (1, 8, 64, 1024, 16384)
# Parameters, and how many tensors networks of that size have, roughly.
NETWORKS = {1e8: 200, 1e9: 300, 1e10: 500, 1e11: 1000, 1e12: 2000}
# Of AdamW in float32, a gradient read twice; what of it stays in memory; and an H100's memory.
MOVED, KEPT, BANDWIDTH, ROOM = 32, 16, 3.35e12, 80e9
NOT_TAKEN = "Not taken yet: `make bench` does it."


def sharded(documents: dict[str, Any]) -> str:
    """A sharded step beside its parts and beside torch's recipes."""
    document = documents.get("sharded")
    if document is None:
        return NOT_TAKEN
    names = list(dict.fromkeys(row["what"] for row in document["rows"]))
    body = []
    for case, ranks in dict.fromkeys((row["case"], row["ranks"]) for row in document["rows"]):
        found = {
            row["what"]: row["seconds"] for row in document["rows"] if (row["case"], row["ranks"]) == (case, ranks)
        }
        parts = found[names[1]] + found[names[2]]
        body.append([case, str(ranks), *(duration(found[name]) for name in names), f"{found[names[0]] / parts:.2f}"])
    return f"{_source(document)}\n\n{markdown(['case', 'ranks', *names, 'over its two parts'], body)}"


def mesh(documents: dict[str, Any]) -> str:
    """What a step costs one rank of a simulated mesh."""
    document = documents.get("mesh")
    if document is None:
        return NOT_TAKEN
    header = [
        "ranks",
        "tensors",
        "collectives",
        "received",
        "tensors made",
        "host time of a step",
        "wrapping and the first step",
    ]
    body = [
        [
            f"{row['ranks']:,}", f"{row['tensors']:,}", str(row["collectives"]), memory(row["bytes"]),
            memory(row["made"]), duration(row["seconds"]), duration(row["first_seconds"]),
        ]
        for row in document["rows"]
    ]  # fmt: skip
    return f"{_source(document)}\n\n{markdown(header, body)}"


def at_scale(documents: dict[str, Any]) -> str:
    """For networks and ranks the bytes of memory traffic a rank, and the time that they take."""
    document = documents.get("mesh")
    if document is None:
        return NOT_TAKEN
    per_tensor = {row["ranks"]: row["seconds"] / row["tensors"] for row in document["rows"]}[max(RANKS)]
    header = [
        "parameters",
        "tensors",
        "received from 1,024 ranks",
        "host time",
        *(f"{r:,} rank" + "s" * (r > 1) for r in RANKS),
    ]
    body = []
    for params, tensors in NETWORKS.items():
        cells = []
        for ranks in RANKS:
            share = params / ranks
            moved = f"{memory(MOVED * share)}, {duration(MOVED * share / BANDWIDTH)}"
            cells.append(moved if KEPT * share <= ROOM else "no room")
        received = (2 + 2) * (tensors + 1) * 8
        size = f"10<sup>{math.log10(params):.0f}</sup>"
        body.append([size, f"{tensors:,}", memory(received), duration(per_tensor * tensors), *cells])
    return markdown(header, body)


def _source(document: dict[str, Any]) -> str:
    return f"Taken on {document['when'][:10]} with `{document['command']}` on {sentence(document)}."


FIGURES = {"sharded": sharded, "mesh": mesh, "at_scale": at_scale}
