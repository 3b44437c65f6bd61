"""What the documentation shows runs, and what it refers to is there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradops
from docs import mkdocs_hooks
from gradops.demo.explosion import explosion
from gradops.diagnose.remedies import REMEDIES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]*)\)")
# The sections that a report of a run links to.
ANCHORS = (
    "lower-the-peak-learning-rate",
    "cap-the-relative-step",
    "initialise",
    "normalise",
    "weight-decay",
    "loss-scale",
    "clipping",
    "single-bad-batches",
    "dead-layers",
    "skipped-steps-and-running-statistics",
    "a-loss-that-alone-is-no-number",
    "max-norm",
)


def blocks():
    for page in PAGES:
        for number, code in enumerate(BLOCK.findall(page.read_text()), 1):
            yield pytest.param(code, id=f"{page.relative_to(ROOT)}-{number}")


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def readers_names(code):
    """What the pages take as given: a training that is about to begin."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-3)
    if "gradops.wrap(" not in code:
        optimizer = gradops.wrap(optimizer, max_norm=1.0)
    data = TensorDataset(torch.randn(48, 1, 8, 8), torch.randint(2, (48, 10)).float())
    inputs, targets = data[:4]
    return {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
        "loader": DataLoader(data, batch_size=4),
        "inputs": inputs,
        "targets": targets,
        "loss_fn": F.binary_cross_entropy_with_logits,
        "criterion": F.binary_cross_entropy_with_logits,
        "history": [],
        "torch": torch,
        "gradops": gradops,
    }


@pytest.mark.parametrize("code", list(blocks()))
def test_code_on_the_pages_runs(code, tmp_path, monkeypatch):
    if "fastai" in code:
        pytest.importorskip("fastai")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "page", "exec"), readers_names(code))


def test_report_finds_its_sections_in_the_guide():
    assert {remedy.anchor for remedy in REMEDIES.values()} <= set(ANCHORS)
    assert set(ANCHORS) <= anchors(ROOT / "docs" / "exploding-gradients.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_figure_of_the_guide_has_its_maker():
    folder = ROOT / "docs" / "figures"
    made = set(re.findall(r'^    "([\w-]+)": \w+\.draw,$', (folder / "__main__.py").read_text(), re.M))
    shown = set(re.findall(r"figures/([\w-]+)\.png", (ROOT / "docs" / "exploding-gradients.md").read_text()))
    assert shown == made == {path.stem for path in folder.glob("*.png")}


def test_first_page_shows_the_report_of_its_picture():
    report = " ".join(json.loads((ROOT / "docs/figures/facts.json").read_text())["exploded"]["report"])
    shown = (ROOT / "README.md").read_text().split("gradops report run.npz\n")[1].split("![")[0]
    parts = [part.strip(" .:-") for part in re.split(r"(?:\n *- |\n *\n|(?<=:)\n)", shown) if part.strip()]
    assert len(parts) >= 6
    for part in parts:
        assert re.sub(r"\s+", " ", part) in re.sub(r"\s+", " ", report), part
    guide = (ROOT / "docs/exploding-gradients.md").read_text()
    step, layer = re.search(r"Step (\d+): the gradient of layer `(\S+)`", report).groups()
    assert f"names `{layer}` at step {step}" in re.sub(r"\s+", " ", guide)


def test_first_code_of_the_first_page_is_the_cure_of_its_picture():
    code = BLOCK.search((ROOT / "README.md").read_text())[1]
    assert all(line in code.splitlines() for line in explosion("AdamW", None).lines.splitlines())


def test_first_page_is_short():
    page = (ROOT / "README.md").read_text()
    assert len(page.splitlines()) <= 150
    assert len(page.split()) <= 900


def test_every_public_name_is_on_the_api_page():
    page = mkdocs_hooks.completed((ROOT / "docs" / "api.md").read_text())
    assert set(mkdocs_hooks.public_names()) == {name for name in gradops.__all__ if not name.startswith("_")}
    assert sorted(re.findall(r"^::: gradops\.(\w+)$", page, re.M)) == sorted(mkdocs_hooks.public_names())


def test_page_that_nobody_listed_is_in_the_navigation(tmp_path):
    (tmp_path / "known.md").write_text("# Known")
    (tmp_path / "new.md").write_text("# The new page\n\nText.")
    config = {"nav": [{"A page": "known.md"}, {mkdocs_hooks.OTHER_PAGES: []}], "docs_dir": str(tmp_path)}
    assert mkdocs_hooks.on_config(config)["nav"][1] == {mkdocs_hooks.OTHER_PAGES: [{"The new page": "new.md"}]}


@pytest.mark.slow
def test_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    html = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert len(html) > 5
    fetched = re.compile(r"""(?:src|<link[^>]*href)=["']?https?://""")
    assert not any(fetched.search(text) for text in html)
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert all(f'id="gradops.{name}"' in api for name in ("wrap", "AdamW", "lr_find", "StepStats"))
    wrap = re.split('(?=<h3 id="gradops)', api)[1]
    assert wrap.startswith('<h3 id="gradops.wrap"')
    assert len(re.findall(r"<em>required</em>|>\s*required\s*<", wrap)) == 1, "the optimizer"
    assert not re.search(r"<code>\*\*\w+</code>(?:(?!</tr>).)*required", api, re.DOTALL)
    assert "def wrap(" in re.sub("<[^>]*>", "", wrap), "its source"


def test_first_page_installs_what_its_own_code_needs():
    page = (ROOT / "README.md").read_text()
    assert "gradops.Recorder(" in page
    assert "pip install '.[report]'" in page
    extra = re.search(r"^report = (.*)$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert extra
    assert '"numpy>=' in extra[1], "what a Recorder needs"
