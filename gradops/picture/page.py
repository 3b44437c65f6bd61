"""A recorded run as one interactive HTML page: every layer, step and value under the pointer."""

import base64
import datetime
import os
import re
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradops import page
from gradops._version import __version__
from gradops.diagnose.finding import Finding
from gradops.diagnose.report import Report, report
from gradops.diagnose.view import View
from gradops.picture import histograms, look
from gradops.picture.names import columns, without_shared
from gradops.picture.plot import EVENTS
from gradops.record.run import Run

HERE = Path(__file__).parent
SCRIPTS = [HERE / name for name in ("steps.js", "layer_map.js", "histogram.js", "page.js")]
# Beyond these, neighbouring steps share a column: a page of some megabytes still opens at once.
MOST_CELLS, MOST_HISTOGRAM_CELLS = 300_000, 3_000_000
FADED = -4.0
WIDE = 1e3


def write(run: Run, path: str | os.PathLike[str]) -> None:
    """Writes the page, which needs nothing else.

    Args:
        run: what a `gradops.Recorder` saw.
        path: where to.

    Raises:
        ValueError: the run has no steps.
    """
    found, view = report(run), View(run)
    made = f"{Path(path).name}, made {datetime.date.today().isoformat()} by gradops {__version__}"
    facts = [found.summary, _settings(run), made]
    title, body = found.verdict.replace("`", ""), _body(found) + (HERE / "page.html").read_text() + _guide(found)
    page.write(Path(path), title, facts, body, _data(view, found), style=HERE / "page.css", scripts=SCRIPTS)


def _body(found: Report) -> str:
    seen = "".join(f"<li>{_level(finding)}{_with_names(finding.text)}</li>" for finding in found.findings)
    advice = "".join(f'<li>{escape(each.advice)} <a href="#{each.anchor}">More</a></li>' for each in found.remedies)
    lists = (("What was seen", seen), ("What to do", advice))
    return "".join(f"<h2>{title}</h2><ul>{items}</ul>" for title, items in lists if items)


def _level(finding: Finding) -> str:
    """A word before what is more than a note, as in the text."""
    return "" if finding.level == "note" else f"<b>{finding.level}:</b> "


def _guide(found: Report) -> str:
    """What the guide says of each remedy, in short: the page is read where the guide is not."""
    sections = {remedy.anchor: remedy for remedy in found.remedies}
    said = "".join(
        f'<h3 id="{anchor}">{escape(remedy.heading)}</h3><p>{escape(remedy.why)}</p>'
        for anchor, remedy in sections.items()
    )
    return f"<h2>From the guide</h2>{said}" if said else ""


def _with_names(text: str) -> str:
    """HTML of a sentence whose layer names stand between backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def _settings(run: Run) -> str:
    said = {name: value for name, value in run.about.items() if value is not None}
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _data(view: View, found: Report) -> dict[str, Any]:
    run = view.run
    lines = [_line("global norm", run.grad_norm), _line("loss", run.loss)]
    lines.append(_line("learning rate", run.lr.max(axis=1), widest=np.inf))
    if (run.loss_scale != 1).any():
        lines.append(_line("loss scale", run.loss_scale, widest=1.0))
    palette = (255 * matplotlib.colormaps[look.COLOURS](np.linspace(0, 1, 256))[:, :3]).round().astype(int)
    return {
        "steps": run.steps.tolist(),
        "measures": _measures(view),
        "lines": [line for line in lines if line is not None],
        "marks": [
            {"name": "clipped", "rows": np.flatnonzero((run.clip_coef < 1) & ~run.skipped).tolist()},
            {"name": "skipped", "rows": np.flatnonzero(run.skipped).tolist()},
        ],
        "events": [
            {"name": EVENTS[finding.kind], "row": finding.row or 0}
            for finding in found.findings
            if finding.kind in EVENTS
        ],
        "histograms": _histograms(run),
        "accused": _accused(run, found),
        "palette": palette.tolist(),
    }


def _accused(run: Run, found: Report) -> int | None:
    """The watched layer that the report names first."""
    named = [finding.layer for finding in found.findings if finding.layer in run.layers]
    return run.layers.index(named[0]) if named and named[0] is not None else None


def _measures(view: View) -> list[dict[str, Any]]:
    """What the map can show, of layers with parameters and of layers that were watched."""
    run, layers = view.run, view.layers
    weights = np.where(np.isin(np.arange(len(run.names)), view.weights), 1.0, np.nan)
    made = [
        _measure("gradient norm", layers, np.where(np.isfinite(view.norms), view.norms, np.inf)),
        _measure("largest gradient", layers, _of_layers(view, run.abs_max)),
        _measure("update over weight", layers, _of_layers(view, run.update_ratio * weights)),
        _measure("RMS of the weights", layers, _of_layers(view, run.param_rms * weights)),
        _measure("largest output", run.layers, run.activation_abs_max),
        _measure("standard deviation of outputs", run.layers, run.activation_std),
        _measure("share of negative outputs", run.layers, run.activation_negative, logarithmic=False),
        _measure("share of outputs near zero", run.layers, run.activation_near_zero, logarithmic=False),
    ]
    return [measure for measure in made if measure is not None]


def _of_layers(view: View, values: NDArray[Any]) -> NDArray[np.float64]:
    """[S, K], of each layer the largest value of its parameters; NaN beats none."""
    return np.stack([np.fmax.reduce(values[:, of].astype(np.float64), axis=1) for of in view.members], axis=1)


def _measure(name: str, layers: list[str], values: ArrayLike, logarithmic: bool = True) -> dict[str, Any] | None:
    rows = np.asarray(values, dtype=np.float64).T
    if not np.isfinite(rows).any():
        return None
    binned, size = columns(rows, max(1, MOST_CELLS // len(rows)))
    shape = {**_named(layers), "columns": binned.shape[1], "size": size}
    return {"name": name, **shape, "logarithmic": logarithmic, "values": _encoded(binned.astype(np.float32))}


def _named(layers: list[str]) -> dict[str, Any]:
    """The layers, and what stands beside their rows, where there is little room."""
    return {"layers": layers, "labels": without_shared(layers)}


def _line(name: str, values: NDArray[np.float32], widest: float = WIDE) -> dict[str, Any] | None:
    """A line for the page, logarithmic where the largest value is more than `widest` times the smallest."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    logarithmic = bool((known > 0).all() and known.max() > widest * known.min())
    return {"name": name, "logarithmic": logarithmic, "values": _encoded(values.astype(np.float32))}


def _histograms(run: Run) -> dict[str, Any]:
    """Of each watched layer the shares of its outputs by bins and columns, as bytes; 0 for none, 255 for all."""
    if not run.layers:
        return _named([])
    bins = run.activation_histogram.shape[2] + 1
    most = max(50, MOST_HISTOGRAM_CELLS // (bins * len(run.layers)))
    encoded, wide, size = [], 0, 1
    for layer in range(len(run.layers)):
        shares, size = columns(histograms.shares(run, layer), most)
        with np.errstate(divide="ignore"):
            light = 1 - np.log10(np.maximum(np.nan_to_num(shares), 10**FADED)) / FADED
        wide = shares.shape[1]
        encoded.append(_encoded(np.where(np.nan_to_num(shares) > 0, 1 + 254 * light, 0).astype(np.uint8)))
    edges = [float(edge) for edge in run.histogram_edges]
    shape = {"bins": bins, "columns": wide, "size": size, "edges": edges}
    named = zip(*histograms.ticks(run.histogram_edges, "{}1e{}"), strict=True)
    return {**_named(run.layers), **shape, "ticks": list(named), "values": encoded}


def _encoded(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
