"""Figures on the pages come from JSON: each place has its maker, and what stands there is replaced."""

import re
from dataclasses import replace

import pytest

from benchmarks import optimizer_tables, tables
from gradops.bench.interleave import Samples
from gradops.bench.machine import describe
from gradops.bench.rows import Row
from gradops.profile.result import Result
from gradops.profile.tables import verdict
from gradops.profile.trace import Trace

HEAD = {"command": "python -m gradops", "when": "2026-01-02T03:04:05+00:00", "machine": describe()}
ROW = Row("100x100", "torch fused + clip", 10_000, 100, seconds=2e-3, spread=0.4)


@pytest.fixture
def results():
    rows = [ROW, replace(ROW, params=10**6, seconds=3e-3), replace(ROW, params=10**6, tensors=10_000, seconds=4.0)]
    loop = {"phases": {"forward": {"seconds": 9.0}, "norm": {"seconds": 1e-3}, "optimizer": {"seconds": 2e-3}}}
    machine = {"cpu": "a processor", "torch": "2.14"}
    timed = {"extra_info": {"ranges": 5, "seconds": 1.5e-7}}
    documents = {
        "step": {"machine_info": machine, "datetime": "2026-01-02", "commit_info": {"id": None}, "benchmarks": []},
        "ranges": {"machine_info": machine, "datetime": "2026-01-02T00:00", "benchmarks": [timed]},
        "scaling": {**HEAD, "rows": [row.figures() for row in rows]},
        "profile": {
            **HEAD,
            "results": [{"speedup_quartiles": [1.0, 1.25, 1.5], "loops": {"torch": loop, "gradops": loop}}],
        },
    }
    for threads in ("one_thread", "two_threads"):
        faster = {tables.GRADOPS_SCALED: None, tables.FUSED_SCALED: 3.0, tables.FOREACH_SCALED: 4.0}
        of_threads = [
            Row("resnet18", name, 1, 1, seconds=1e-3 * (times or 1), gradops_speedup=times)
            for name, times in faster.items()
        ]
        documents[threads] = {**HEAD, "rows": [row.figures() for row in of_threads]}
    return tables.Results(documents)


def test_every_place_on_the_pages_has_its_maker():
    marks = [mark for page in tables.PAGES for mark in re.findall(r"<!-- bench:(\w+) -->", page.read_text())]
    assert set(marks) == set(tables.FIGURES)


def test_figures_replace_what_stood_there_and_nothing_else(results):
    page = "before\n<!-- bench:ranges -->\nold\n<!-- /bench -->\nafter"
    text = tables.fill(page, results)
    assert "old" not in text
    assert "150 ns" in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter")
    assert tables.fill(text, results) == text


def test_scaling_shows_where_work_is_least_and_most(results):
    text = tables.scaling(results)
    assert "10,000 params in 100 tensors | 1,000,000 params in 100 tensors" in text
    assert "| torch fused + clip | 2 ms | 3 ms | 3 ms | 4 s |" in text
    assert "python -m gradops" in text
    assert "40%" in text


def test_optimizers_stand_beside_their_native_recipes(results):
    assert "Not taken yet" in optimizer_tables.optimizers(results.documents)
    ours = Row("9x9", "gradops", 81, 9, seconds=1e-3, bytes_per_param=24, share_of_stream=0.9, optimizer="SGD")
    theirs = replace(ours, recipe="torch fused + clip", seconds=2e-3, versus="gradops", gradops_speedup=2.0)
    theirs = replace(theirs, bytes_per_param=32)
    results.documents["optimizers"] = {**HEAD, "rows": [theirs.figures(), ours.figures()]}
    text = optimizer_tables.optimizers(results.documents)
    assert "| 9x9 | SGD | torch fused + clip | 2 ms | 32 | 1 ms | 24 | 2.00x | 0.90 |" in text


def test_who_stays_below_the_share_of_the_stream_is_named(results):
    shares = {
        tables.GRADOPS_SCALED: {"SGD": 0.95, "LARS": 0.826},
        optimizer_tables.AVERAGED: {"SGD": 0.9, "LARS": 0.95},
    }
    rows = [
        Row("resnet50", recipe, 1, 1, spread=0.1, bytes_per_param=24, share_of_stream=share, optimizer=name)
        for recipe, of_names in shares.items()
        for name, share in of_names.items()
    ]
    results.documents["optimizers"] = {**HEAD, "rows": [row.figures() for row in rows]}
    text = optimizer_tables.optimizer_shares(results.documents)
    assert "| LARS | 24 | 0.83 | 10 % | 24 | 0.95 | 10 % |" in text
    assert text.endswith("Below 0.9: LARS (0.83); with an average of the weights: none.")


def test_profile_says_what_comes_after_the_backward_pass(results):
    text = tables.profile(results)
    assert "What comes after the backward pass is 1.00 times as fast (3 ms to 3 ms, profiled)." in text
    assert "1.25 times as fast" in text


def test_page_bounds_steps_by_what_comes_after_the_backward_pass_as_the_terminal_does(results, monkeypatch):
    monkeypatch.setattr(Result, "profiler_overhead", lambda self, name: 0.0)
    seconds = {
        "torch": {"forward": 0.9, "norm": 0.05, "optimizer": 0.03, "other": 0.02},
        "gradops": {"forward": 0.9, "optimizer": 0.03, "gradops.update": 0.03},
    }
    samples = {"torch": Samples([1.0, 1.25, 1.5]), "gradops": Samples([1.0, 1.0, 1.0])}
    result = Result(4, 4, {}, samples, {}, {}, Trace({"traceEvents": []}))
    loops = {
        name: {"phases": {phase: {"seconds": spent} for phase, spent in each.items()}} for name, each in seconds.items()
    }
    found = {"speedup_quartiles": result.speedup_quartiles, "loops": loops}
    results.documents["profile"]["results"] = [found]
    said = tables.profile(results).partition("a clip, s")[2].partition(" Taken on")[0]
    assert "It is 8.0% of a step, which makes steps 1.05 times as fast at most: more is noise." in said
    assert verdict(result, seconds).startswith(f"S{said} Spread")


def test_headline_has_one_thread_and_two(results):
    assert "1 ms on one thread (3.00x against fused, 4.0x against foreach) and 1 ms on two" in tables.headline(results)
    assert "| resnet18 | torch fused + GradScaler + clip | 3 ms | 3.00x |" in tables.threads(results)
