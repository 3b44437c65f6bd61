"""The versions on the pages are those that the tests last passed with."""

import json
from importlib.metadata import version

import pytest

from tools import tested_with

PAGE = "| timm <!-- tested:timm -->1.0<!-- /tested --> | ours <!-- tested:gradops -->0<!-- /tested --> |"


def test_known_versions_take_their_places_and_others_stay():
    filled = tested_with.filled(PAGE, {"timm": "2.5", "fastai": "9"})
    assert filled == PAGE.replace("1.0", "2.5")
    assert tested_with.packages(PAGE) == ["timm", "gradops"]
    assert tested_with.filled(filled, {"timm": "2.5"}) == filled


@pytest.mark.parametrize("page", tested_with.PAGES, ids=lambda page: page.name)
def test_every_page_has_places_that_are_filled(page):
    text = page.read_text()
    assert tested_with.packages(text)
    assert text.count("<!-- /tested -->") == text.count("<!-- tested:") == len(tested_with.packages(text))
    assert "--><!-- /tested -->" not in text


def test_what_is_installed_is_noted_and_written(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- tested:torch -->0.1<!-- /tested -->")
    monkeypatch.setattr(tested_with, "NOTED", tmp_path / "build" / "noted.json")
    monkeypatch.setattr(tested_with, "PAGES", (page,))
    assert tested_with.noted() == {}
    monkeypatch.setattr("sys.argv", ["tested_with.py"])
    tested_with.main()
    assert json.loads(tested_with.NOTED.read_text()) == {"torch": version("torch")}
    assert f"torch {version('torch')}" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["tested_with.py", "--write"])
    tested_with.main()
    assert page.read_text() == f"<!-- tested:torch -->{version('torch')}<!-- /tested -->"
