"""`python -m gradops guide`: the guide's page is what is shown, a section at a time."""

import re
from html import escape
from pathlib import Path

import pytest

from gradops.__main__ import main
from gradops.diagnose import Report
from gradops.diagnose.remedies import REMEDIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exploding-gradients.md"


@pytest.mark.parametrize("anchor", sorted({remedy.anchor for remedy in REMEDIES.values()}))
def test_command_that_a_report_prints_shows_its_section_in_80_columns(anchor, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    remedy = next(remedy for remedy in REMEDIES.values() if remedy.anchor == anchor)
    assert remedy.command == f"python -m gradops guide {anchor}"
    assert main(remedy.command.split()[3:]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading == remedy.heading
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert not re.search(r"\]\(|!\[|<sup>|```", text), "marks of the page"
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    told = re.sub(r"^!.*$|\]\(.*?\)|<.*?>", "", section, flags=re.MULTILINE)
    assert set(re.findall(r"[A-Za-z]{3,}", text)) == set(re.findall(r"[A-Za-z]{3,}", told)) - {"python"}


def test_sections_are_listed(capsys):
    assert main(["guide"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == PAGE.read_text().count("\n## ")
    assert "max-norm " in "\n".join(listed)


def test_section_that_there_is_not_is_said_in_a_sentence():
    with pytest.raises(SystemExit, match="the guide has no section cliping; without a name, gradops guide lists them"):
        main(["guide", "cliping"])


def test_report_names_the_command_and_a_notebook_folds_the_reason():
    """No path of the repository, which is not there after `pip install`."""
    remedy = REMEDIES["cap"]
    found = Report("Some steps.", (), (), (), (remedy,))
    assert str(found).endswith(f"\n  {remedy.command}\n")
    html = found._repr_html_()
    assert f"<details><summary>{remedy.heading}</summary><p>{escape(remedy.why)}</p>" in html
    assert f"<code>{remedy.command}</code></p></details>" in html
    assert "docs/" not in str(found) + html
