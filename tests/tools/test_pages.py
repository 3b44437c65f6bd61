"""Both HTML pages on a phone and in the dark, in a real browser."""

import dataclasses
import re

import pytest

pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")

from browser import dom_of, seen
from profiles import written
from trainings import recorded

from gradops.picture import page as report_page
from gradops.profile import page as profile_page
from gradops.profile import tables, timeline

PHONE = 420
LONG = "module.backbone.feature_extractor_without_any_end.residual_stage_that_" + 60 * "x"


def report(path):
    report_page.write(recorded("high lr, residual"), path)


def renamed(rename):
    run = recorded("high lr, residual")
    return dataclasses.replace(run, names=[*map(rename, run.names)], layers=[*map(rename, run.layers)])


def report_with_long_names(path):
    report_page.write(renamed(lambda name: f"{LONG}{name}"), path)


def profile(path):
    result, picture = written({LONG: 3}), path.with_suffix(".png")
    timeline.draw(result, "a title", "a source", picture)
    shown = [*tables.of_result(result, "cuda"), tables.batch_sizes([result])]
    profile_page.write(path, f"gradops profile: {LONG}.py", [f"python -m gradops {LONG}"], [(result, shown, picture)])


PAGES = [report, report_with_long_names, profile]


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)", by WCAG 2."""
    channels = [int(value) / 255 for value in re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("make", PAGES)
def test_nothing_is_wider_than_a_phone(make, tmp_path):
    make(tmp_path / "page.html")
    found = seen(tmp_path / "page.html", PHONE)
    assert (found["ready"], found["window"]) == ("yes", PHONE)
    assert found["content"] <= PHONE


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("make", [report, profile])
def test_text_is_readable_by_day_and_in_the_dark(make, dark, tmp_path):
    make(tmp_path / "page.html")
    found = seen(tmp_path / "page.html", 1400, dark)
    assert (found["ready"], found["dark"]) == ("yes", dark)
    assert (luminance(found["background"]) < 0.05) == dark
    assert len(found["colours"]) >= 2
    faint = {colour: name for colour, name in found["colours"].items() if contrast(colour, found["background"]) < 4.5}
    assert not faint


def test_what_all_layers_names_begin_with_takes_no_room_of_a_phone(tmp_path):
    report_page.write(renamed("module.network.{}".format), tmp_path / "page.html")
    dom = dom_of(tmp_path / "page.html")
    listed = re.search(r'<select id="layer">(.*?)</select>', dom, re.DOTALL)[1]
    assert re.findall(r">([^<]+)<", listed)[:3] == ["1", "2.fc1", "2.relu"]
    assert '"labels": ["1", "2.fc1", "2.fc2"' in dom
    assert "<code>module.network." in dom
