"""What a prompt and a notebook show of records, reports, curves and stats: a line, and a picture."""

import sys

import pytest
import torch
from torch import nn

import gradops
from gradops.range_test.curve import LRCurve, LRStep

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

STEPS = 30


@pytest.fixture(scope="module")
def recorder():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
    optimizer = gradops.AdamW(model.named_parameters(), lr=1e-2, max_norm=1.0)
    with gradops.Recorder(optimizer, model) as recorder:
        for _ in range(STEPS):
            optimizer.backward(model(torch.randn(8, 6)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    return recorder


def curve():
    steps = [LRStep(10 ** (k / 20 - 6), 1 + 1 / (k + 1), 1.0, 1.0, False, False, False) for k in range(100)]
    return LRCurve(None, 4.0, "AdamW", steps)


@pytest.fixture(params=["recorder", "run", "report", "comparison", "curve", "stats"])
def thing(request, recorder):
    return {
        "recorder": lambda: recorder,
        "run": recorder.run,
        "report": recorder.report,
        "comparison": lambda: recorder.run().compare(recorder.run()),
        "curve": curve,
        "stats": lambda: recorder._optimizer.stats,
    }[request.param]()


def test_repr_is_a_short_line_without_arrays(thing):
    said = repr(thing)
    assert said.startswith("<gradops ")
    assert len(said) < 400
    assert "\n" not in said
    assert "array(" not in said
    assert "tensor(" not in said


def test_notebook_shows_a_picture_or_a_table(thing):
    html = thing._repr_html_()
    if isinstance(thing, gradops.StepStats):
        assert html.count("<table>") == 2
        assert all(name in html for name in thing.names)
    else:
        assert html.count('src="data:image/png;base64,iVBOR') == 1


def test_without_matplotlib_a_notebook_shows_the_line(thing, monkeypatch):
    drawn = ("gradops.figure", "gradops.picture", "gradops.range_test.picture")
    for name in [name for name in sys.modules if name.startswith(drawn)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert (thing._repr_html_() is None) is not isinstance(thing, gradops.StepStats)


def test_numbers_of_a_run_are_in_its_line(recorder):
    assert repr(recorder.run()) == "<gradops Run: 30 steps, 0 to 29; 4 parameters, outputs of 3 layers>"
    assert repr(recorder) == "<gradops Recorder of AdamW: 30 steps, closed>"
    assert repr(recorder.report()).startswith(f"<gradops Report: {recorder.report().verdict}")
    assert repr(curve()) == f"<gradops LRCurve: 100 steps from 1e-06 to 0.089, suggestion {curve().suggestion:.2g}>"


def test_nothing_recorded_is_no_error():
    param = torch.zeros(2, requires_grad=True)
    optimizer = gradops.AdamW([param])
    with gradops.Recorder(optimizer) as recorder:
        assert repr(recorder) == "<gradops Recorder of AdamW: 0 steps, recording>"
        assert recorder._repr_html_() is None
    assert repr(LRCurve(None, 4.0, "AdamW")) == "<gradops LRCurve: no steps>"
    assert LRCurve(None, 4.0, "AdamW")._repr_html_() is None


def test_stats_list_the_parameters_with_the_largest_gradients_first_and_not_all_of_many():
    params = [torch.zeros(2, requires_grad=True) for _ in range(50)]
    for size, param in enumerate(params):
        param.grad = torch.full_like(param, float(size))
    params[7].grad.fill_(torch.nan)
    optimizer = gradops.AdamW([(f"layer{place}", param) for place, param in enumerate(params)])
    optimizer.step()
    html = optimizer.stats._repr_html_()
    assert "20 of 50 parameters" in html
    shown = [f"layer{place}" for place in (7, 49, 48)]
    assert [html.index(f"<td>{name}<") for name in shown] == sorted(html.index(f"<td>{name}<") for name in shown)
    assert "<td>layer1<" not in html


def test_names_are_escaped():
    param = torch.zeros(2, requires_grad=True)
    optimizer = gradops.AdamW([("<b>&", param)])
    assert "&lt;b&gt;&amp;" in optimizer.stats._repr_html_()
