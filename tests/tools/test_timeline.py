"""The profile's timeline says the times that its table says."""

import json
import re

import matplotlib
import pytest
from test_phases import RANGE, event

from gradops.bench.interleave import Samples
from gradops.bench.units import duration
from gradops.profile import page, phases, tables, timeline
from gradops.profile.loop import NAMES
from gradops.profile.memory import Memory
from gradops.profile.result import Result
from gradops.profile.trace import Trace

# 600, 1,200 and 300 microseconds of phases after the backward pass, and 700 and 800 between them.
TORCH = [("backward", 100, 5000), ("norm", 5200, 600), ("clip", 6500, 1200), ("optimizer", 8500, 300)]
GRADOPS = [("backward", 100, 5000), ("optimizer", 5200, 900), ("gradops.update", 5300, 600)]


@pytest.fixture
def result():
    events, costs = [], {}
    for start, name, of_loop in ((0, "torch", TORCH), (20_000, "gradops", GRADOPS)):
        events.append(event(f"{name} step", RANGE, start, 10_000))
        events += [event(phase, RANGE, start + begin, length) for phase, begin, length in of_loop]
    trace = Trace({"traceEvents": events})
    for name in NAMES:
        costs[name] = phases.costs(trace.steps(name))
    memory = dict.fromkeys(NAMES, Memory(1, 1, 1, 1, 1, {"backward": 2**20}, [(0.0, 2**20), (10_000.0, 2**20)]))
    samples = dict.fromkeys(NAMES, Samples([0.01, 0.01, 0.01]))
    return Result(4, 4, {}, samples, costs, memory, trace)


@pytest.fixture
def of_table(result):
    """The time after the backward pass and that of the step, of each loop, as the table has them."""
    rows = {row[0]: row for row in tables.where_time_goes(result).rows}
    return [(rows["unscale to scale update"][column], rows["step, profiled"][column]) for column in (1, 3)]


def test_picture_says_the_times_of_the_table(result, of_table, tmp_path):
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        timeline.draw(result, "a title", "a source", tmp_path / "timeline.svg")
    text = (tmp_path / "timeline.svg").read_text()
    said = [
        (re.search(rf">{name}, after the backward pass: (.*?)<", text)[1], re.search(rf">{name}: (.*?)<", text)[1])
        for name in NAMES
    ]
    assert said == of_table
    assert said[0] == ("2.1 ms", "10 ms")


def test_page_says_the_times_of_the_table(result, of_table, tmp_path):
    page.write(tmp_path / "report.html", "a title", [], [(result, [], None)])
    data = re.search(r'<script id="data"[^>]*>(.*?)</script>', (tmp_path / "report.html").read_text(), re.DOTALL)[1]
    loops = json.loads(data)["timelines"][0]["loops"]
    said = [(duration(loop["after"]["length"] * 1e-6), duration(loop["length"] * 1e-6)) for loop in loops]
    assert said == of_table
    assert loops[0]["after"]["width"] == 3600, "the gaps are drawn"
