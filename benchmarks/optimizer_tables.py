"""The figures that compare optimizers: each beside its native recipe, its target, and its share of the bandwidth."""

from typing import Any

from benchmarks.markdown import markdown, source
from gradops.bench.formats import duration
from gradops.bench.recipes import GRADOPS_SCALED

FUSED, FUSED_SCALED = "torch fused + clip", "torch fused + GradScaler + clip"


def optimizers(documents: dict[str, Any]) -> str:
    """Every optimizer beside its fastest native recipe."""
    document = documents.get("optimizers")
    if document is None:
        return "Not taken yet: `make bench` does it."
    rows = document["rows"]
    ours = {(row["case"], row["optimizer"], row["recipe"]): row for row in rows if row["seconds"]}
    header = ["model", "optimizer", "recipe", "time", "bytes/param", "gradops", "bytes/param", "is faster by", "share"]
    body = []
    for row in rows:
        mine = ours.get((row["case"], row["optimizer"], row["versus"]))
        if mine is None or not row["seconds"]:
            continue
        times = [duration(row["seconds"]), str(row["bytes_per_param"]), duration(mine["seconds"])]
        share = f"{mine['share_of_stream']:.2f}" if mine["share_of_stream"] else ""
        faster = f"{row['gradops_speedup']:.2f}x"
        moved = str(mine["bytes_per_param"])
        body.append([row["case"], row["optimizer"], row["recipe"], *times, moved, faster, share])
    note = "share: of the GB/s of the fastest plain stream, by gradops."
    return f"{source(document)} {note}\n\n{markdown(header, body)}"


# Model, optimizer, recipe, and how many times as fast gradops was meant to be.
OPTIMIZER_TARGETS = [
    ("resnet50", "SGD", FUSED_SCALED, 1.6),
    ("resnet50", "SGD", f"{FUSED_SCALED} + ModelEmaV3", 1.7),
    ("resnet50", "AdamW", f"{FUSED_SCALED} + ModelEmaV3", 1.7),
    *(("resnet50", name, "torch foreach + clip", 4.0) for name in ("RMSprop", "NAdam", "RAdam")),
    ("resnet50", "Lion", "timm + clip", 4.0),
    ("resnet50", "LARS", "timm + clip", 6.0),
    ("161x64", "SGD", FUSED, 25.0),
]


def optimizer_targets(documents: dict[str, Any]) -> str:
    """What the project set out to reach for each optimizer, and what was measured."""
    rows = {(row["case"], row["optimizer"], row["recipe"]): row for row in documents["optimizers"]["rows"]}
    body = [
        [model, name, recipe, f"≥ {target:g}x", f"{rows[model, name, recipe]['gradops_speedup']:.2f}x"]
        for model, name, recipe, target in OPTIMIZER_TARGETS
    ]
    return markdown(["model", "optimizer", "against", "target", "measured"], body)


SHARE_TARGET, AVERAGED = 0.9, f"{GRADOPS_SCALED} + ema"


def optimizer_shares(documents: dict[str, Any]) -> str:
    """How much of the stream's bandwidth each rule's step reaches at its own bytes, and who stays below the target."""
    document = documents["optimizers"]
    rows = {(row["optimizer"], row["recipe"]): row for row in document["rows"] if row["case"] == "resnet50"}
    names = list(dict.fromkeys(name for name, _ in rows))
    recipes = (GRADOPS_SCALED, AVERAGED)
    body = [[name, *(cell for recipe in recipes for cell in _share(rows[name, recipe]))] for name in names]
    below = [_below({name: rows[name, recipe]["share_of_stream"] for name in names}) for recipe in recipes]
    header = ["resnet50", *("bytes/param", "share", "spread"), *("bytes/param with EMA", "share", "spread")]
    said = f"Below {SHARE_TARGET:g}: {below[0]}; with an average of the weights: {below[1]}."
    return f"{markdown(header, body)}\n\n{said}"


def _below(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} ({share:.2f})" for name, share in shares.items() if share < SHARE_TARGET) or "none"


def _share(row: dict[str, Any]) -> list[str]:
    return [str(row["bytes_per_param"]), f"{row['share_of_stream']:.2f}", f"{row['spread'] * 100:.0f} %"]


def yolo(documents: dict[str, Any]) -> str:
    """ultralytics' step with its averages, and ours."""
    document = documents["yolo_ema"]
    seconds: dict[tuple[str, int], dict[str, float]] = {}
    for row in document["rows"]:
        seconds.setdefault((row["optimizer"], row["threads"]), {})[row["step"]] = row["seconds"]
    body = [
        [optimizer, str(threads), *map(duration, found.values()), f"{found['ultralytics'] / found['gradops']:.2f}x"]
        for (optimizer, threads), found in seconds.items()
    ]
    header = ["optimizer", "threads", "ultralytics", "gradops", "gradops is faster by"]
    return f"{source(document)}\n\n{markdown(header, body)}"


FIGURES = {
    "optimizers": optimizers,
    "optimizer_targets": optimizer_targets,
    "optimizer_shares": optimizer_shares,
    "yolo": yolo,
}
