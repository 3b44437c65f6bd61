"""Writes every figure of the pages from the JSON files of `make bench` and `make gpu-report`.

A figure stands between `<!-- bench:NAME -->` and `<!-- /bench -->`; what was there is replaced.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

from benchmarks import gpu_tables, optimizer_tables, scale_tables
from benchmarks.gpu_tables import seconds_of
from benchmarks.markdown import markdown, source
from benchmarks.optimizer_tables import FUSED, FUSED_SCALED
from gradops.bench import plot
from gradops.bench.formats import duration
from gradops.bench.models import MODELS
from gradops.bench.recipes import GRADOPS, GRADOPS_CAPPED, GRADOPS_SCALED
from gradops.bench.rows import row_of
from gradops.bench.scaling import PARAMS, TENSORS
from gradops.profile.tables import claim

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    ROOT / "docs" / "speed.md",
    ROOT / "docs" / "bench-and-profile.md",
    ROOT / "docs" / "cuda.md",
    ROOT / "docs" / "gpu.md",
    ROOT / "docs" / "scale.md",
    ROOT / "docs" / "frameworks.md",
]
SCALING_PICTURE = ROOT / "docs" / "scaling.png"

FOREACH_SCALED = "torch foreach + GradScaler + clip"

Row = dict[str, object]


class Results:
    """The runs' documents by name ("step", "ranges", "scaling", "profile"), and the rows of "step"."""

    def __init__(self, documents: dict[str, dict]):
        self.documents = documents
        document = documents["step"]
        self.machine = document["machine_info"]
        self.when = document["datetime"][:10]
        self.commit = (document["commit_info"]["id"] or "unknown")[:9]
        self.rows = [benchmark["extra_info"] for benchmark in document["benchmarks"]]
        self.gpu = documents.get("gpu_report", {})

    def row(self, case: str, recipe: str) -> Row:
        return next(row for row in self.rows if (row["case"], row["recipe"]) == (case, recipe))

    def of_case(self, case: str) -> list[Row]:
        return [row for row in self.rows if row["case"] == case]

    def cases(self) -> list[str]:
        return list(dict.fromkeys(row["case"] for row in self.rows))


def machine(results: Results) -> str:
    """Where, when and how the figures were taken."""
    what = results.machine
    return (
        f"Taken on {results.when} at commit {results.commit} with `make bench` on {what['cpu']}: {what['cores']} cores,"
        f" {what['threads']} threads, torch {what['torch']}, Python {what['python']}, {what['backend']}. "
        "Times are medians of rounds in which every recipe runs once, in random order; ratios are medians over the "
        "rounds of two times of the same round; the spread is the interquartile range over the median."
    )


def targets(results: Results) -> str:
    """What the project set out to reach on two cores, and what this run measured."""
    speedup = {name: results.row("resnet50", name)["gradops_speedup"] for name in (FUSED, FUSED_SCALED, FOREACH_SCALED)}
    small = results.row("161x64", FUSED)["gradops_speedup"]
    small_scaled = results.row("161x64", FUSED_SCALED)["gradops_speedup"]
    many = results.row("10000x64", GRADOPS)
    # The speed-up of gradops over its capped self is the capped one's time over the plain one's.
    cap = (results.row("resnet50", GRADOPS_CAPPED)["gradops_speedup"] - 1) * 100
    alone = next(
        row["gradops_speedup"]
        for row in results.documents["one_thread"]["rows"]
        if (row["case"], row["recipe"]) == ("resnet50", FUSED)
    )
    body = [
        ("ResNet-50 against fused AdamW + GradScaler.unscale_ + clip", "≥ 1.75x", f"{speedup[FUSED_SCALED]:.2f}x"),
        ("ResNet-50 against fused AdamW + clip, no scaler", "≥ 1.45x", f"{speedup[FUSED]:.2f}x"),
        ("ResNet-50 against foreach AdamW + GradScaler + clip", "≥ 4x", f"{speedup[FOREACH_SCALED]:.2f}x"),
        (
            "ResNet-50, share of the stream's bandwidth at 32 bytes per parameter",
            "≥ 0.9",
            f"{results.row('resnet50', GRADOPS)['share_of_stream']:.2f}",
        ),
        ("161 tensors of 64 elements against fused AdamW + clip", "≥ 40x", f"{small:.1f}x"),
        ("the same with loss scaling, against GradScaler", "≥ 40x", f"{small_scaled:.1f}x"),
        ("10,000 tensors of 64 elements", "< 150 ns per tensor", f"{many['seconds'] / many['tensors'] * 1e9:.0f} ns"),
        ("ResNet-50, more time with `max_relative_step` on", "≤ 5 %", f"{cap:.1f} %"),
        ("one thread: ResNet-50 against fused AdamW + clip", "≥ 1.35x", f"{alone:.2f}x"),
    ]
    return markdown(["what, float32", "target", "measured"], body)


def _cells(row: Row) -> list[str]:
    moved, share = row["bytes_per_param"], row["share_of_stream"]
    return [
        row["recipe"],
        duration(row["seconds"]),
        f"{row['spread'] * 100:.0f} %",
        f"{row['gradops_speedup']:.2f}x" if row["gradops_speedup"] else "",
        str(moved) if moved else "",
        f"{row['bytes_per_second'] / 1e9:.1f}" if moved else "",
        f"{share:.2f}" if share else "",
    ]


def models(results: Results) -> str:
    """One table for each network."""
    header = ["recipe", "time", "spread", "gradops is faster by", "bytes/param", "GB/s", "share of stream"]
    parts = []
    for case in filter(MODELS.__contains__, results.cases()):
        rows = results.of_case(case)
        title = (
            f"**{case}**, {rows[0]['params']:,} parameters in {rows[0]['tensors']} tensors, {rows[0]['rounds']} rounds"
        )
        parts.append(f"{title}\n\n{markdown(header, map(_cells, rows))}")
    return "\n\n".join(parts)


def tensors(results: Results) -> str:
    """Time per tensor against the number of tensors, 64 elements each."""
    cases = [case for case in results.cases() if case not in MODELS]
    body = []
    for recipe in dict.fromkeys(row["recipe"] for case in cases for row in results.of_case(case)):
        found = {row["case"]: row for row in results.rows if row["recipe"] == recipe}
        times = [duration(found[case]["seconds"] / found[case]["tensors"]) if case in found else "" for case in cases]
        body.append([recipe, *times])
    return markdown(["time per tensor", *(f"{int(case.split('x')[0]):,} tensors" for case in cases)], body)


def summary(results: Results) -> str:
    """The short form on the page about speed."""
    body = []
    for case in filter(MODELS.__contains__, results.cases()):
        native, ours = results.row(case, FUSED_SCALED), results.row(case, GRADOPS_SCALED)
        foreach = results.row(case, FOREACH_SCALED)
        times = [duration(row["seconds"]) for row in (foreach, native, ours)]
        body.append([case, *times, f"{foreach['gradops_speedup']:.1f}x", f"{native['gradops_speedup']:.2f}x"])
    header = ["model", "foreach (default)", "fused", "gradops", "against foreach", "against fused"]
    return markdown(header, body)


def headline(results: Results) -> str:
    """The README's one sentence, for one thread and for two."""
    parts = []
    for name, count in (("one_thread", "one thread"), ("two_threads", "two")):
        rows = {row["recipe"]: row for row in results.documents[name]["rows"] if row["case"] == "resnet18"}
        ours, fused, foreach = (rows[recipe] for recipe in (GRADOPS_SCALED, FUSED_SCALED, FOREACH_SCALED))
        parts.append(
            f"{duration(ours['seconds'])} on {count} ({fused['gradops_speedup']:.2f}x against fused, "
            f"{foreach['gradops_speedup']:.1f}x against foreach)"
        )
    return (
        "What follows the backward pass of a ResNet-18 (GradScaler, norm clipping, AdamW, float32) takes "
        f"{' and '.join(parts)}. {source(results.documents['two_threads'])} " + gpu_tables.headline(results.gpu)
    )


def threads(results: Results) -> str:
    """Two networks on one thread and on two."""
    parts = []
    for name in ("one_thread", "two_threads"):
        document = results.documents[name]
        body = [
            [row["case"], row["recipe"], duration(row["seconds"]), f"{row['gradops_speedup']:.2f}x"]
            for row in document["rows"]
            if row["gradops_speedup"]
        ]
        parts.append(source(document) + "\n\n" + markdown(["model", "recipe", "time", "gradops is faster by"], body))
    return "\n\n".join(parts)


def ranges(results: Results) -> str:
    """The price of the library's named ranges."""
    document = results.documents["ranges"]
    found, what = document["benchmarks"][0]["extra_info"], document["machine_info"]
    return (
        f"The {found['ranges']} named ranges that a step opens take {duration(found['seconds'])} together when no "
        f"profiler runs (`benchmarks/bench_ranges.py`, {document['datetime'][:10]}, {what['cpu']}, "
        f"torch {what['torch']})."
    )


def scaling(results: Results) -> str:
    """Every recipe's cost per parameter where parameters are few and many, and per tensor where tensors are."""
    document = results.documents["scaling"]
    rows = [row for row in document["rows"] if row["seconds"] and not row["recipe"].startswith("stream")]
    growing = [row for row in rows if row["tensors"] == TENSORS]
    splitting = [row for row in rows if row["params"] == PARAMS]
    ends = [pick(found, key) for found, key in ((growing, "params"), (splitting, "tensors")) for pick in (first, last)]
    header = ["one optimizer phase"]
    header += [f"{params:,} params in {tensors:,} tensors" for params, tensors in ends]
    body = []
    for recipe in dict.fromkeys(row["recipe"] for row in rows):
        times = {(row["params"], row["tensors"]): duration(row["seconds"]) for row in rows if row["recipe"] == recipe}
        body.append([recipe, *(times.get(end, "") for end in ends)])
    widest = max(row["spread"] for row in rows)
    spread = f"The widest spread, interquartile range over median, is {widest:.0%}."
    return f"{source(document)} {spread}\n\n{markdown(header, body)}"


def first(rows: list[Row], key: str) -> tuple[int, int]:
    row = min(rows, key=lambda row: row[key])
    return row["params"], row["tensors"]


def last(rows: list[Row], key: str) -> tuple[int, int]:
    row = max(rows, key=lambda row: row[key])
    return row["params"], row["tensors"]


def profile(results: Results) -> str:
    """What the profiler found on the pages' example."""
    document = results.documents["profile"]
    found = document["results"][-1]
    seconds = {name: seconds_of(loop) for name, loop in found["loops"].items()}
    said = claim(found["speedup_quartiles"], seconds)
    return f"Beside torch's fused AdamW with GradScaler and a clip, {said[0].lower()}{said[1:]} {source(document)}"


ON_DOCUMENTS = {**scale_tables.FIGURES, **optimizer_tables.FIGURES}
FIGURES: dict[str, Callable[[Results], str]] = {
    "machine": machine,
    "targets": targets,
    "models": models,
    "tensors": tensors,
    "summary": summary,
    "headline": headline,
    "threads": threads,
    "ranges": ranges,
    "scaling": scaling,
    "profile": profile,
    **{name: lambda results, make=make: make(results.gpu) for name, make in gpu_tables.FIGURES.items()},
    **{name: lambda results, make=make: make(results.documents) for name, make in ON_DOCUMENTS.items()},
}


def fill(text: str, results: Results) -> str:
    """The page's text with each figure that it has a place for."""

    def replace(match: re.Match[str]) -> str:
        return f"{match['open']}\n\n{FIGURES[match['name']](results)}\n\n<!-- /bench -->"

    return re.sub(r"(?P<open><!-- bench:(?P<name>\w+) -->).*?<!-- /bench -->", replace, text, flags=re.DOTALL)


def read_results() -> Results:
    """Every document that there is."""
    return Results({path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")})


def write_pages() -> None:
    """Rewrites the pages in place."""
    results = read_results()
    for page in PAGES:
        page.write_text(fill(page.read_text(), results))


def main() -> None:
    """Pages and the picture."""
    document = read_results().documents["scaling"]
    plot.draw([row_of(row) for row in document["rows"]], document, SCALING_PICTURE, by_work=True)
    write_pages()


if __name__ == "__main__":
    main()
