"""The figures of docs/scale.md: sharded steps as they were measured, and what follows for many ranks."""

import math
from collections.abc import Callable
from typing import Any

from benchmarks.markdown import markdown, source
from benchmarks.sharded import BOTH, SHARDED
from gradops.bench.formats import duration, memory
from gradops.distributed.gather import MOST_GATHERED

RANKS = (1, 8, 64, 1024, 16384)
# Parameters, and how many tensors networks of that size have, roughly.
NETWORKS = {1e8: 200, 1e9: 300, 1e10: 500, 1e11: 1000, 1e12: 2000}
# Of AdamW in float32, a gradient read twice; what of it stays in memory; and an H100's memory.
MOVED, KEPT, BANDWIDTH, ROOM = 32, 16, 3.35e12, 80e9
# Of a step on a GPU: in one launch; of shards; and torch's own around two reductions.
ALONE, OF_SHARDS, REDUCING = 1, 4, 15
# float64, of each tensor and of none. Two reductions merge norms and counts, and maxima and which of them are NaN.
LINES, REDUCED_LINES, NUMBER = 3, 4, 8
NOT_TAKEN = "Not taken yet: `make bench` does it."


def sharded(documents: dict[str, Any]) -> str:
    """A sharded step beside its parts and beside torch's recipes."""
    document = documents.get("sharded")
    if document is None:
        return NOT_TAKEN
    names = list(dict.fromkeys(row["what"] for row in document["rows"]))
    cases: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in document["rows"]:
        cases.setdefault((row["case"], row["ranks"], row["when"]), {})[row["what"]] = row["seconds"]
    body = [
        [case, str(ranks), when, *(duration(found[name]) for name in names), f"{found[SHARDED] / found[BOTH]:.2f}"]
        for (case, ranks, when), found in cases.items()
    ]
    return f"{source(document)}\n\n{markdown(['case', 'ranks', 'when', *names, 'sharded over the two'], body)}"


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
    return f"{source(document)}\n\n{markdown(header, body)}"


def payload(ranks: int, tensors: int) -> tuple[int, int]:
    """How many collectives a step has, and the bytes that they bring a rank."""
    if ranks == 1:
        return 0, 0
    gathered = ranks * LINES * NUMBER * (tensors + 1)
    return (1, gathered) if gathered <= MOST_GATHERED else (2, REDUCED_LINES * NUMBER * (tensors + 1))


def host_time(rows: list[dict[str, Any]], ranks: int, tensors: int) -> float:
    """Seconds, on the line through what was measured with the fewest and the most tensors."""
    measured = sorted((row["tensors"], row["seconds"]) for row in rows if row["ranks"] == ranks)
    (few, fast), (many, slow) = measured[0], measured[-1]
    return fast + (slow - fast) * (tensors - few) / (many - few)


def _grid(cell: Callable[[float, int, int], str]) -> str:
    """A row for each network and a column for each number of ranks, of `cell(parameters, tensors, ranks)`."""
    header = ["parameters", "tensors", "1 rank", *(f"{ranks:,}" for ranks in RANKS[1:])]
    body = [
        [f"10<sup>{math.log10(params):.0f}</sup>", f"{tensors:,}", *(cell(params, tensors, ranks) for ranks in RANKS)]
        for params, tensors in NETWORKS.items()
    ]
    return markdown(header, body)


def _if_room(params: float, ranks: int, text: str) -> str:
    return text if KEPT * params / ranks <= ROOM else "no room"


def _launches(ranks: int, tensors: int) -> str:
    collectives, _ = payload(ranks, tensors)
    return str(ALONE) if ranks == 1 else f"{OF_SHARDS + REDUCING * (collectives == 2)} + {collectives}"


def paper_traffic(_: dict[str, Any]) -> str:
    """Bytes that a rank moves in its memory."""
    return _grid(lambda params, _, ranks: _if_room(params, ranks, memory(MOVED * params / ranks)))


def paper_seconds(_: dict[str, Any]) -> str:
    """How long an H100's memory takes for them."""
    return _grid(lambda params, _, ranks: _if_room(params, ranks, duration(MOVED * params / ranks / BANDWIDTH)))


def paper_launches(_: dict[str, Any]) -> str:
    """Kernels and collectives of a step."""
    return _grid(lambda _, tensors, ranks: _launches(ranks, tensors))


def paper_payload(_: dict[str, Any]) -> str:
    """Bytes that a rank receives in a step."""
    return _grid(lambda _, tensors, ranks: memory(payload(ranks, tensors)[1]))


def paper_host(documents: dict[str, Any]) -> str:
    """What the host takes for a step, from the simulated mesh."""
    document = documents.get("mesh")
    if document is None:
        return NOT_TAKEN
    return _grid(lambda _, tensors, ranks: duration(host_time(document["rows"], ranks, tensors)))


FIGURES = {
    "sharded": sharded,
    "mesh": mesh,
    "paper_traffic": paper_traffic,
    "paper_seconds": paper_seconds,
    "paper_launches": paper_launches,
    "paper_payload": paper_payload,
    "paper_host": paper_host,
}
