"""The profile's timeline says the times that its table says."""

import json
import re

import matplotlib
import pytest
from profiles import written

from gradops.bench.formats import duration
from gradops.profile import page, tables, timeline
from gradops.profile.loop import NAMES


@pytest.fixture
def result():
    return written()


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
