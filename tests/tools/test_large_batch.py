"""The study of large batches: its bookkeeping, its tables, and the example that it trains."""

import json
from dataclasses import replace

import pytest
from recorded_jobs import jobs_of
from torch import nn

from gradops.__main__ import main

pytest.importorskip("mlxtend")
study = pytest.importorskip("studies.large_batch")
table = pytest.importorskip("studies.large_batch_table")
example = pytest.importorskip("examples.train_large_batch")
sweep = pytest.importorskip("studies.sweep")


def accuracy_of(job):
    """Highest at the second rate of each grid."""
    grid = {64: study.GRID, 2048: study.LARGEST_GRID}.get(job.batch_size, study.GRID)[job.optimizer]
    return 0.9 if job.lr == grid[1] else 0.5


def result_of(job):
    return {**vars(job), "loss": 0.1, "held_out_loss": 0.2, "accuracy": accuracy_of(job), "skipped": 0.0}


@pytest.fixture
def ran(monkeypatch):
    return jobs_of(monkeypatch, study, result_of)


def test_study_runs_each_job_once_and_goes_on_where_it_was(tmp_path, ran):
    path = tmp_path / "runs.jsonl"
    study.sweep(study.grid_jobs(), path)
    assert len(set(ran)) == len(ran) == study.GRID_SEEDS * 2 * 5 * len(study.GRID)
    grids = len(ran)
    study.sweep(study.later_jobs(sweep.read_results(path), seeds=4), path)
    assert len(set(ran)) == len(ran)
    per_optimizer = 4 * (2 + len(study.BATCHES) * len(study.RULES)) + 3 * len(study.SIDES) - 2 * study.GRID_SEEDS
    assert len(ran) - grids == per_optimizer * len(study.GRID)
    study.sweep([*study.later_jobs(sweep.read_results(path), seeds=4), *[study.Job("SGD", 32, 0.1)] * 2], path)
    assert len(set(ran)) == len(ran)


def test_later_runs_use_the_best_rate_of_the_grid_and_scale_it():
    results = [result_of(job) for job in study.grid_jobs()]
    assert study.best_rate(results, "LARS", 64) == study.GRID["LARS"][1]
    assert study.rule_job(results, "LARS", 1024, "sqrt").lr == pytest.approx(4 * study.GRID["LARS"][1])
    assert study.rule_job(results, "LARS", 1024, "linear").lr == pytest.approx(16 * study.GRID["LARS"][1])
    with pytest.raises(ValueError, match=r"SGD at batch 64 and rate 0.01 has 2 of 3 seeds"):
        study.best_rate(results[1:], "SGD", 64)


def test_table_has_mean_and_worst_of_the_seeds_of_one_job_alone():
    job = study.Job("SGD", 256, 0.1)
    results = [{**result_of(replace(job, seed=seed)), "accuracy": 0.9 + seed / 50} for seed in range(3)]
    results.append(result_of(replace(job, precision="fp16")))
    assert table._cell(results, job) == "**92.0%** (n=3), 90.0%<br>lr 0.1, loss 0.100"
    results[0]["loss"] = None
    assert "loss inf" in table._cell(results, job)


def test_published_tables_are_those_that_the_results_give(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(study.PAGE.read_text())
    sweep.write_between(page, study.COMMAND, table.tables(sweep.read_results(study.RESULTS)))
    assert page.read_text() == study.PAGE.read_text()


def test_example_has_the_rates_that_the_study_found_best():
    results = sweep.read_results(study.RESULTS)
    assert {name: study.best_rate(results, name, example.BASE_BATCH) for name in study.GRID} == example.RATES


def test_a_run_is_one_json_line_that_names_its_job():
    job = study.Job("LARC", 1024, 0.3, seed=1, accumulate=2, precision="bf16", epochs=1)
    result = study.run(job)
    assert study.job_of(json.loads(json.dumps(result))) == job
    assert result["loss"] > 0
    assert 0 < result["accuracy"] < 1


def test_parts_of_a_batch_that_are_accumulated_are_the_batch(monkeypatch):
    monkeypatch.setattr(example, "make_model", lambda: nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10)))
    whole, parts = (example.train("SGD", 512, 0.01, epochs=1, accumulate=count) for count in (1, 3))
    assert whole == pytest.approx(parts, rel=1e-5)


@pytest.mark.slow
def test_the_example_is_profiled_with_the_command_that_it_names(tmp_path, monkeypatch):
    (line,) = (line for line in example.__doc__.splitlines() if "gradops profile" in line)
    monkeypatch.chdir(study.PAGE.parents[1])
    few = ["--batch-size", "8", "--steps", "2", "--profiled-steps", "1", "--output", str(tmp_path)]
    assert main([*line.partition("-m gradops ")[2].split(), *few]) == 0
    (found,) = json.loads((tmp_path / "report.json").read_text())["results"]
    assert found["batch_size"] == 8
    assert all(loop["seconds"] for loop in found["loops"].values())


@pytest.mark.parametrize("name", example.RATES)
def test_warm_up_is_a_fifth_of_the_steps_and_the_rate_ends_near_zero(name, monkeypatch):
    rates = []
    make = example.make_optimizer

    def watched(*args, **settings):
        optimizer = make(*args, **settings)
        optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer

    monkeypatch.setattr(example, "make_optimizer", watched)
    monkeypatch.setattr(example, "make_model", lambda: nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10)))
    example.train(name, 200, 0.5, epochs=1)
    assert len(rates) == 20
    assert rates[:4] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.01
