"""The figures of the pages that benchmarks/results/gpu_report.json gives; each says so while nothing was taken."""

from collections.abc import Callable
from typing import Any

from benchmarks.markdown import markdown
from gradops.bench.formats import duration, memory
from gradops.bench.models import MODELS
from gradops.profile.phases import after_backward

NOT_YET = "Not yet taken on a GPU."
Document = dict[str, Any]


def found(document: Document, stage: str) -> dict[str, Any]:
    """What the successful parts of a stage found, by part."""
    entries = document.get("stages", {}).get(stage, {})
    return {part: entry["found"] for part, entry in entries.items() if entry["status"] == "ok" and entry["found"]}


def troubles(document: Document, stage: str) -> list[str]:
    """A sentence for each part without a result; those of the same reason share one."""
    reasons: dict[str, list[str]] = {}
    for part, entry in document.get("stages", {}).get(stage, {}).items():
        if entry["status"] != "ok":
            reason = (entry["said"].splitlines() or [entry["status"]])[0].rstrip(";")
            reasons.setdefault(f"{entry['status']}: {reason}", []).append(part)
    return [f"Without a result: {', '.join(parts)} ({reason})." for reason, parts in reasons.items()]


def _paragraphs(document: Document, stage: str, *parts: str) -> str:
    """The parts that there are, and what the stage could not do."""
    text = [part for part in (*parts, *troubles(document, stage)) if part]
    return "\n\n".join(text) if text else NOT_YET


def rows(document: Document) -> list[dict[str, Any]]:
    """The times; of what is measured twice, as the recipes that others are compared with, the first."""
    every = [row for part in found(document, "time").values() for row in part]
    return list({(row["case"], row["recipe"]): row for row in reversed(every)}.values())[::-1]


def machine(document: Document) -> str:
    """Where and when."""
    env = found(document, "build").get("env")
    if env is None:
        return _paragraphs(document, "build")
    entry, what = document["stages"]["build"]["env"], env["machine"]
    where = f"{what.get('gpu', what['cpu'])}, CUDA {what.get('cuda')}"
    return (
        f"Taken on {entry['when'][:10]} at commit {entry['commit']} with `make gpu-report` on {where}; "
        f"torch {what['torch']}, Python {what['python']}, Triton {env['env']['Triton'].split()[-1]}; "
        f"native code: {env['env']['CUDA native']}."
    )


def right(document: Document) -> str:
    """Tests that passed on the GPU, by backend."""
    counts: dict[str, list[int]] = {}
    for part, result in [*found(document, "right").items(), *found(document, "rules").items()]:
        total = counts.setdefault(part.partition(":")[0], [0, 0])
        total[0] += result["passed"]
        total[1] += result["skipped"]
    body = [[name, str(passed), str(skipped)] for name, (passed, skipped) in counts.items()]
    table = markdown(["tests on the GPU", "passed", "skipped"], body) if body else ""
    return _paragraphs(document, "right", table, *troubles(document, "rules"))


def traffic(document: Document) -> str:
    """DRAM bytes of a step beside what was derived and estimated."""
    body = []
    for model, result in found(document, "bytes").items():
        estimate = "" if result["estimate"] is None else f"{result['estimate']:.2f}"
        if "read" in result:
            total = result["read"] + result["written"]
            body.append([model, *(f"{value:.2f}" for value in (result["read"], result["written"], total)), estimate])
    header = ["DRAM bytes per float32 parameter", "read", "written", "together", "estimate"]
    return _paragraphs(document, "bytes", markdown(header, body) if body else "")


def _time(seconds: float | None) -> str:
    return duration(seconds) if seconds else ""


def _row(row: dict[str, Any]) -> list[str]:
    share, faster = row["share_of_stream"], row["gradops_speedup"]
    return [
        row["recipe"],
        *(_time(row[key]) for key in ("seconds", "replay_seconds", "call_seconds", "host_seconds")),
        f"{faster:.2f}x" if faster else "",
        *("" if row[key] is None else str(row[key]) for key in ("calls", "waits")),
        f"{share:.2f}" if share else "",
    ]


def models(document: Document) -> str:
    """A table for each network."""
    header = ["recipe", "GPU, cold L2", "graph replay", "back to back", "host", "gradops is faster by"]
    header += ["launches", "waits", "share of a copy's bandwidth"]
    tables = []
    every = [row for row in rows(document) if row["seconds"]]
    for case in dict.fromkeys(row["case"] for row in every if row["case"] in MODELS):
        of_case = [row for row in every if row["case"] == case]
        title = f"**{case}**, {of_case[0]['params']:,} parameters in {of_case[0]['tensors']} tensors"
        tables.append(f"{title}\n\n{markdown(header, list(map(_row, of_case)))}")
    return _paragraphs(document, "time", *tables)


def tensors(document: Document) -> str:
    """Back-to-back time of a step against the number of tensors, 64 elements each."""
    every = [row for row in rows(document) if row["case"] not in MODELS and row["call_seconds"]]
    if not every:
        return NOT_YET
    counts = sorted({row["tensors"] for row in every})
    body = []
    for recipe in dict.fromkeys(row["recipe"] for row in every):
        times = {row["tensors"]: row["call_seconds"] for row in every if row["recipe"] == recipe}
        body.append([recipe, *(_time(times.get(count)) for count in counts)])
    return markdown(["a step, back to back", *(f"{count:,} tensors" for count in counts)], body)


def training(document: Document) -> str:
    """Whole steps of a ResNet-50, and their share after the backward pass."""
    body = []
    for precision, result in found(document, "training").items():
        low, middle, high = result["speedup_quartiles"]
        for name, loop in result["loops"].items():
            after = after_backward(seconds_of(loop))
            samples = sorted(loop["seconds"])
            ratio = f"{middle:.3f}x ({low:.3f} to {high:.3f})" if name == "gradops" else ""
            peak = memory(max(loop["memory"]["peaks"].values()))
            body.append([f"{precision}, {name}", _time(samples[len(samples) // 2]), _time(after), peak, ratio])
    header = ["ResNet-50, channels_last", "step", "after backward", "peak memory", "steps are faster by (quartiles)"]
    return _paragraphs(document, "training", markdown(header, body) if body else "")


def seconds_of(loop: dict[str, Any]) -> dict[str, float]:
    """Seconds of a profiled step's phases, of a loop in a profile's document."""
    return {phase: cost["seconds"] for phase, cost in loop["phases"].items()}


def sanitizer(document: Document) -> str:
    """What compute-sanitizer's tools said."""
    of_rules = [(f"{tool}, every rule", result) for tool, result in found(document, "sanitized_rules").items()]
    every = [*found(document, "sanitizer").items(), *of_rules]
    table = markdown(["compute-sanitizer", "summary"], [[tool, result["summary"]] for tool, result in every])
    return _paragraphs(document, "sanitizer", table if every else "", *troubles(document, "sanitized_rules"))


def headline(document: Document) -> str:
    """One sentence for pages that are about something else."""
    of_case = {row["recipe"]: row for row in rows(document) if row["case"] == "resnet50"}
    ours = of_case.get("gradops + loss scale", {}).get("seconds")
    fused = of_case.get("torch fused + GradScaler + clip", {}).get("gradops_speedup")
    foreach = of_case.get("torch foreach + GradScaler + clip", {}).get("gradops_speedup")
    if not (ours and fused and foreach):
        return "Its times are not yet taken on a GPU."
    gpu = found(document, "build").get("env", {}).get("machine", {}).get("gpu", "a GPU")
    return (
        f"On {gpu} what follows the backward pass of a ResNet-50 takes {duration(ours)} ({fused:.2f}x against fused, "
        f"{foreach:.1f}x against foreach)."
    )


FIGURES: dict[str, Callable[[Document], str]] = {
    "gpu_headline": headline,
    "gpu_machine": machine,
    "gpu_right": right,
    "gpu_bytes": traffic,
    "gpu_models": models,
    "gpu_tensors": tensors,
    "gpu_training": training,
    "gpu_sanitizer": sanitizer,
}
