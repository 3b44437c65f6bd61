"""The sweep's bookkeeping: it resumes, survives a torn line, and counts the seeds of each cell."""

import json

import pytest

pytest.importorskip("mlxtend")
sweep = pytest.importorskip("benchmarks.sweep")

JOBS = [sweep.Job("AdamW", sweep.PLAIN, 0.01, seed, 320) for seed in range(3)]


def result_of(job, loss=0.25):
    return {**vars(job), "loss": loss}


@pytest.fixture
def ran(monkeypatch):
    """The jobs that were run, in their order, without running them."""
    jobs = []

    def fake_run(job):
        jobs.append(job)
        return result_of(job)

    monkeypatch.setattr(sweep, "run", fake_run)
    return jobs


def test_sweep_runs_what_is_missing_and_nothing_twice(tmp_path, ran):
    path = tmp_path / "sweep.jsonl"
    sweep.append(path, result_of(JOBS[1]))
    sweep.sweep(JOBS, path, workers=1)
    assert ran == [JOBS[0], JOBS[2]]
    sweep.sweep(JOBS, path, workers=1)
    assert len(ran) == 2
    assert {sweep.job_of(result) for result in sweep.read_results(path)} == set(JOBS)


def test_line_cut_off_is_run_again_and_spoils_no_other(tmp_path, ran):
    path = tmp_path / "sweep.jsonl"
    path.write_text(json.dumps(result_of(JOBS[0])) + "\n" + json.dumps(result_of(JOBS[1]))[:20])
    sweep.sweep(JOBS[:2], path, workers=1)
    assert ran == [JOBS[1]]
    assert [sweep.job_of(result) for result in sweep.read_results(path)] == JOBS[:2]


def test_every_job_is_its_own_and_the_first_seed_covers_every_cell():
    todo = list(sweep.jobs(seeds=8, steps=320))
    assert len(set(todo)) == len(todo) == 8 * len(sweep.CELLS) * len(sweep.RULES)
    first_seed = todo[: len(sweep.CELLS) * (len(sweep.RULES) - len(sweep.LATER_RULES))]
    assert {(job.network, job.lr) for job in first_seed} == set(sweep.CELLS)
    assert {job.seed for job in first_seed} == {0}


def test_table_states_mean_seeds_and_each_loss():
    results = [result_of(JOBS[1], 0.3), result_of(JOBS[0], 0.1)]
    assert "| AdamW | **0.200** (n=2)<br>.100 .300 |" in sweep.table(results)


def test_loss_that_is_not_finite_is_neither_dropped_nor_averaged_away():
    assert "(n=2)<br>.100 inf" in sweep.table([result_of(JOBS[0], 0.1), result_of(JOBS[1], None)])


def test_table_is_written_between_its_marks_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{sweep.BEGIN}\nold\n{sweep.END}\nafter\n")
    sweep.write_table([result_of(JOBS[0])], page)
    once = page.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert "0.250" in once
    sweep.write_table([result_of(JOBS[0])], page)
    assert page.read_text() == once


def test_a_run_is_one_json_line_that_names_its_job():
    job = sweep.Job("cap 0.1, warm-up 50", sweep.NORMALISED, 0.01, seed=1, steps=5)
    result = sweep.run(job, train_canvases=64, held_out_canvases=16)
    assert sweep.job_of(json.loads(json.dumps(result))) == job
    assert result["loss"] > 0
    assert 0 < result["accuracy"] < 1
