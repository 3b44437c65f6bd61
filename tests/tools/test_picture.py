"""Pictures and page of a recorded run: what they show, and that a real browser runs the page."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mlxtend")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from browser import dom_of
from matplotlib.text import Text
from trainings import recorded

import gradops
from gradops.__main__ import main
from gradops.diagnose.report import report
from gradops.picture import page, plot
from gradops.picture.histograms import shares
from gradops.picture.names import columns, rows_of, shorten, without_shared

# A user's hand: shows the first row's last step, zooms, sorts, and looks at another layer's outputs.
HAND = """
<script>
const canvas = document.getElementById("map"), box = canvas.getBoundingClientRect();
const fire = (name, x, y, more) => canvas.dispatchEvent(
  new (name === "wheel" ? WheelEvent : PointerEvent)(name, {clientX: box.left + x, clientY: box.top + y, ...more}));
const said = {}, hint = document.getElementById("hint");
fire("pointermove", box.width - 2, HEAD + 2);
said.hint = hint.textContent;
said.opened = document.getElementById("layer").selectedOptions[0].text;
fire("pointermove", box.width - 2, HEAD + map.mapHeight + 20);
said.line = hint.textContent;
fire("wheel", (LEFT + box.width) / 2, 30, {deltaY: -500, cancelable: true});
said.scrolled = map.width;
fire("wheel", (LEFT + box.width) / 2, 30, {deltaY: -500, cancelable: true, ctrlKey: true});
said.zoomed = [map.width, histogram.width];
document.getElementById("order").value = "worst";
document.getElementById("order").dispatchEvent(new Event("change"));
said.worst = map.measure.layers[map.rows[0]];
said.order = map.rows;
fire("click", LEFT + 50, HEAD + 2);
said.clicked = document.getElementById("layer").selectedOptions[0].text;
document.getElementById("all").click();
said.all = map.width;
const drawn = name => {
  const picture = document.getElementById(name);
  const pixels = picture.getContext("2d").getImageData(LEFT + 1, 0, picture.width - LEFT - 1, picture.height).data;
  return new Set(new Uint32Array(pixels.buffer)).size;
};
said.colours = [drawn("map"), drawn("histogram")];
const list = document.createElement("pre");
list.id = "said";
list.textContent = JSON.stringify(said);
document.body.append(list);
</script>
</body>
"""


def words(figure):
    """Everything that is written in a figure."""
    return " ".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture(scope="module")
def run():
    return recorded("high lr, residual")


def test_picture_names_every_layer_and_marks_the_first_departure(run, tmp_path):
    figure = plot(run, tmp_path / "run.png")
    said = words(figure)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    for layer in ("1", *(f"{block}.fc{index}" for block in range(2, 8) for index in (1, 2)), "8"):
        assert f" {layer} " in said
    assert "gradient leaves its history, step 18" in said
    assert "A learning rate too high" in said
    assert "loss scale" not in said


def test_picture_marks_clipped_and_skipped_steps_and_inf(tmp_path):
    clipped, skipped = recorded("high lr, clipped"), recorded("float16 overflow")
    assert f"clipped: {np.count_nonzero(clipped.clip_coef < 1)} steps" in words(plot(clipped))
    assert "max_norm 1" in words(plot(clipped))
    figure = plot(skipped)
    assert f"skipped: {np.count_nonzero(skipped.skipped)} steps" in words(figure)
    assert "loss scale" in words(figure)
    crosses = {tuple(line.get_xdata()) for line in figure.axes[0].lines if line.get_marker() == "x"}
    assert crosses == {tuple(skipped.steps[(skipped.nonfinite > 0).any(axis=1)])}


def test_heat_map_shows_the_norms_it_is_given(run):
    figure = plot(run)
    shown = figure.axes[0].images[0].get_array()
    layer = [index for index, name in enumerate(run.names) if name.startswith("5.fc1.")]
    with np.errstate(divide="ignore"):
        expected = np.log10(np.sqrt(np.square(run.norms[:, layer].astype(np.float64)).sum(axis=1)))
    row = [label.get_text() for label in figure.axes[0].get_yticklabels()].index("5.fc1")
    np.testing.assert_allclose(shown[row].filled(-np.inf), expected, rtol=1e-6)


def test_layers_to_show_are_chosen_by_name(run):
    assert "outputs of 3.relu" in words(plot(run, layers=["3.relu", "8"]))
    with pytest.raises(ValueError, match="'nothing'"):
        plot(run, layers=["nothing"])


def test_run_without_activations_has_a_picture_and_a_page(run, tmp_path):
    empty = {
        field.name: getattr(run, field.name)[:, :0]
        for field in dataclasses.fields(run)
        if field.name.startswith("activation_")
    }
    bare = dataclasses.replace(run, layers=[], **empty)
    assert "outputs of" not in words(plot(bare))
    page.write(bare, tmp_path / "report.html")
    dom = dom_of(tmp_path / "report.html")
    assert 'data-ready="yes"' in dom
    assert 'id="histogram"' not in dom.split("<script")[0]


def test_histogram_leaves_no_output_out():
    run = recorded("float16 overflow")
    index = run.layers.index("3")
    found = shares(run, index)
    np.testing.assert_allclose(found.sum(axis=0), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(found[-1] > 0, run.activation_nonfinite[:, index] > 0)
    negative = found[: np.searchsorted(run.histogram_edges, 0.0) + 1].sum(axis=0)
    finite = run.activation_nonfinite[:, index] == 0
    np.testing.assert_allclose(negative[finite], run.activation_negative[finite, index], rtol=1e-5)


def test_long_names_keep_what_tells_them_apart():
    name = "module.encoder.layers.11.self_attention.projection"
    assert shorten("stage1.0.conv1", 20) == "stage1.0.conv1"
    assert shorten(name, 44) == "module…layers.11.self_attention.projection"
    assert shorten(name, 30) == "module…projection"
    assert shorten(name, 8) == "…jection"
    assert all(len(shorten(name, width)) <= width for width in range(2, 60))


def test_what_all_names_begin_with_is_left_out():
    names = ["module.block.0.conv", "module.block.0.norm", "module.block.1"]
    assert without_shared(names) == ["0.conv", "0.norm", "1"]
    assert without_shared(["head", "head.weight"]) == ["head", "head.weight"]
    assert without_shared(["only.one"]) == ["one"]
    assert without_shared([]) == []


def test_more_layers_than_rows_share_rows_and_keep_their_largest_value():
    names = [f"layer{index}" for index in range(100)]
    rows = rows_of(names, most=30, width=20)
    assert len(rows.labels) == 25
    assert rows.labels[1] == "layer4 (+3)"
    values = np.arange(300.0).reshape(3, 100)
    assert rows.largest(values)[:, 0].tolist() == [3.0 + 4 * index for index in range(25)]


def test_more_steps_than_columns_share_columns_and_keep_their_largest_value():
    values = np.array([[1.0, 5.0, np.nan, np.nan, 2.0]])
    binned, size = columns(values, most=3)
    assert size == 2
    np.testing.assert_array_equal(binned, [[5.0, np.nan, 2.0]])


@pytest.fixture(scope="module")
def written(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run.save(folder / "run.npz")
    arguments = ["report", str(folder / "run.npz"), "--html", str(folder / "r.html"), "--plot", str(folder / "r.svg")]
    assert main(arguments) == 0
    return folder


def test_command_writes_page_and_picture(written):
    assert "<svg" in (written / "r.svg").read_text()
    assert "A learning rate too high" in (written / "r.html").read_text()


def test_page_asks_for_nothing_else(written):
    text = (written / "r.html").read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "://" not in text
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(re.findall(r'id="([^"]*)"', text))


def test_page_shows_values_zooms_and_sorts_in_a_browser(written, run):
    moved = written / "moved.html"
    moved.write_text((written / "r.html").read_text().replace("</body>", HAND))
    dom = dom_of(moved)
    assert 'data-ready="yes"' in dom, "the page's script did not come to its end"
    said = json.loads(re.search(r'<pre id="said">(.*)</pre>', dom, re.DOTALL)[1])
    norm = float(np.hypot(*run.norms[-1, :2]))
    layer, step, value = said["hint"].split("\n")
    assert (layer, step) == ("1", "step 89")
    assert float(value.removeprefix("gradient norm ")) == pytest.approx(norm, rel=5e-3)
    assert "step 89\nglobal norm" in said["line"]
    assert said["scrolled"] == 90, "a wheel without Ctrl scrolls the page"
    assert said["zoomed"][0] == said["zoomed"][1] < 45
    named = re.findall(r"`([^`]*)`", " ".join(finding.text for finding in report(run).findings))
    assert said["opened"] == next(name for name in named if name in run.layers)
    assert said["all"] == 90
    assert sorted(said["order"]) == list(range(14)) != said["order"]
    assert said["clicked"] in run.layers
    assert said["clicked"] == said["worst"]
    assert min(said["colours"]) > 20


def test_worst_first_begins_with_the_layer_that_was_dead_from_the_start(run, tmp_path):
    norms = run.norms.copy()
    norms[:, run.names.index("3.fc1.weight")] = norms[:, run.names.index("3.fc1.bias")] = 0.0
    dead = dataclasses.replace(run, norms=norms)
    path = tmp_path / "dead.html"
    page.write(dead, path)
    path.write_text(path.read_text().replace("</body>", HAND))
    said = json.loads(re.search(r'<pre id="said">(.*)</pre>', dom_of(path), re.DOTALL)[1])
    assert said["worst"] == "3.fc1"


def test_report_says_what_it_wrote(written, tmp_path, capsys):
    page, picture = tmp_path / "r.html", tmp_path / "r.png"
    assert main(["report", str(written / "run.npz"), "--html", str(page), "--plot", str(picture)]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert f"Page: {page}" in said
    assert f"Picture: {picture}" in said


def test_page_that_cannot_be_written_is_said_in_a_sentence(written):
    with pytest.raises(SystemExit, match="--html: there is no directory"):
        main(["report", str(written / "run.npz"), "--html", str(written / "missing" / "r.html")])


def test_recorder_reports_plots_and_writes_its_page_while_it_records(tmp_path):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = gradops.AdamW([("scale", param)], lr=1e-3)
    with gradops.Recorder(optimizer) as recorder:
        with pytest.raises(ValueError, match="no steps"):
            recorder.report()
        for _ in range(3):
            param.grad = torch.ones(3)
            optimizer.step()
        assert recorder.report().cause is None
        assert "scale" in words(recorder.plot(tmp_path / "run.png"))
        recorder.to_html(tmp_path / "run.html")
    assert "Steps 0 to 2: 1 parameter in 1 layer, no activations" in (tmp_path / "run.html").read_text()


@pytest.mark.parametrize("method", ["report", "plot", "to_html"])
def test_missing_extra_is_named(method, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith(("gradops.diagnose", "gradops.picture"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    recorder = gradops.Recorder(gradops.AdamW([torch.nn.Parameter(torch.ones(1))]))
    with pytest.raises(ModuleNotFoundError, match=r"needs rich.*gradops\[report\]"):
        getattr(recorder, method)(*([tmp_path / "run.html"] if method == "to_html" else []))
