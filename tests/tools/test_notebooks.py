"""What a notebook shows: pictures without any set-up, in the example notebooks and for each kind of thing by itself."""

import base64
import os
import re
from pathlib import Path

import pytest
from quick import slow_but

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def executed(notebook, folder, monkeypatch):
    """The outputs of its code cells, after a kernel has run it; they are of mime types."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute()
    return [
        [output["data"] for output in cell.outputs if "data" in output]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def said(notebook):
    return "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )


def pictures(html):
    return [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]


def test_rescue(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "rescue.ipynb", as_version=4)
    *_, report, _, plot, stats, parting = executed(notebook, tmp_path, monkeypatch)
    exploded, rescued = (float(loss) for loss in re.findall(r"loss at the end: ([\d.]+)", said(notebook)))
    assert exploded > 1.5
    assert rescued < 1.0
    html = report[0]["text/html"]
    assert "A learning rate too high" in html
    assert "Cap the relative step" in html
    assert [picture.startswith(PNG) for picture in pictures(html)] == [True]
    assert base64.b64decode(plot[0]["image/png"]).startswith(PNG)
    assert "grad_norm" in stats[0]["text/html"]
    assert "They" in parting[0]["text/html"]
    assert len(pictures(parting[0]["text/html"])) == 1
    assert all(len(data["text/plain"]) < 600 for data in (*report, *plot, *stats, *parting))


def test_find_a_rate(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "examples" / "find_a_rate.ipynb", as_version=4)
    _, curve, _, optimizer = executed(notebook, tmp_path, monkeypatch)
    assert len(pictures(curve[0]["text/html"])) == 1
    assert "Suggested peak learning rate" in curve[0]["text/html"]
    assert len(curve[0]["text/plain"]) < 120
    assert "max_norm" in optimizer[0]["text/plain"]
    rate, loss = re.search(r"peak learning rate (\S+), loss at the end ([\d.]+)", said(notebook)).groups()
    assert 1e-4 < float(rate) < 1
    assert float(loss) < 1.0


@pytest.mark.parametrize("setup", ["", *slow_but([], ["%matplotlib inline\n", "import matplotlib.pyplot\n"])])
def test_plot_without_a_path_shows_one_picture_however_matplotlib_is_set_up(setup, tmp_path, monkeypatch):
    lines = """from gradops.range_test.curve import LRCurve, LRStep
curve = LRCurve(None, 4.0, "AdamW", [LRStep(10**-k, 1.0, 1.0, 1.0, False, False, False) for k in (4, 3, 2)])
curve.plot()"""
    cells = [nbformat.v4.new_code_cell(setup + lines)]
    (shown,) = executed(nbformat.v4.new_notebook(cells=cells), tmp_path, monkeypatch)
    assert [base64.b64decode(data["image/png"]).startswith(PNG) for data in shown] == [True]


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda path: path.stem)
def test_example_is_stored_without_outputs(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
