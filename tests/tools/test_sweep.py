"""The sweep's bookkeeping: it resumes, survives a torn line, and counts the seeds of each cell."""

import json
from dataclasses import replace

import pytest
import torch
from recorded_jobs import jobs_of

pytest.importorskip("mlxtend")
sweep = pytest.importorskip("studies.sweep")

studies = pytest.importorskip("studies.grids")
tasks = pytest.importorskip("studies.tasks")
AdaptiveGradientClip = pytest.importorskip("studies.agc").AdaptiveGradientClip
ZClip = pytest.importorskip("studies.zclip").ZClip

CAP = studies.CAP
JOBS = [sweep.Job("AdamW", studies.PLAIN, 0.01, seed) for seed in range(3)]


def result_of(job, loss=0.25):
    return {**vars(job), "loss": loss}


@pytest.fixture
def ran(monkeypatch):
    return jobs_of(monkeypatch, sweep, result_of)


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


@pytest.mark.parametrize("study", studies.STUDIES.values(), ids=studies.STUDIES)
def test_every_job_is_its_own_and_the_first_seed_covers_every_cell(study):
    todo = list(sweep.jobs(study, seeds=8))
    assert len(set(todo)) == len(todo) == 8 * len(study.cells) * len(study.remedies)
    first_seed = todo[: len(study.cells) * (len(study.remedies) - len(study.later_remedies))]
    assert {studies.Cell(job.network, job.lr, job.bad_batches) for job in first_seed} == set(study.cells)
    assert {job.seed for job in first_seed} == {0}


def test_table_states_mean_seeds_and_each_loss():
    results = [result_of(JOBS[1], 0.3), result_of(JOBS[0], 0.1)]
    assert "| AdamW | **0.200** (n=2)<br>.100 .300 |" in sweep.table(CAP, results)


def test_loss_that_is_not_finite_is_neither_dropped_nor_averaged_away():
    assert "(n=2)<br>.100 inf" in sweep.table(CAP, [result_of(JOBS[0], 0.1), result_of(JOBS[1], None)])


def test_table_is_written_between_its_marks_only(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{sweep.begin_mark(sweep.command(CAP))}\nold\n{sweep.END}\nafter\n")
    sweep.write_table(CAP, [result_of(JOBS[0])], page)
    once = page.read_text()
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "old" not in once
    assert "0.250" in once
    sweep.write_table(CAP, [result_of(JOBS[0])], page)
    assert page.read_text() == once


@pytest.mark.parametrize("study", studies.STUDIES.values(), ids=studies.STUDIES)
def test_published_table_is_the_one_that_the_results_give(study, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(study.page.read_text())
    sweep.write_table(study, sweep.read_results(study.results), page)
    assert page.read_text() == study.page.read_text()


def test_bad_batches_are_bad_where_they_were_asked_for_and_nowhere_else():
    good = tasks.task_for(studies.NETWORKS[studies.LINEAR_PLAIN](), 0, 0, 0)
    spoilt = tasks.spoil(replace(good, steps=8), bad_batches=3).train
    index = torch.arange(4)
    differ = [not torch.equal(spoilt.batch(index)[0], good.train.batch(index)[0]) for _ in range(8)]
    assert [number for number, bad in enumerate(differ) if bad] == [2, 4, 6]


@pytest.mark.parametrize("remedy", ["guard: skip and cut", "ZClip", "AGC 0.02"])
def test_remedies_meet_a_bad_batch(remedy):
    job = sweep.Job(remedy, studies.LINEAR_NORMALISED, 0.01, seed=0, steps=80, bad_batches=1, batch_size=8)
    losses = [sweep.run(replace(job, remedy=each))["loss"] for each in (remedy, "AdamW")]
    assert losses[0] != losses[1]


def test_zclip_clips_a_spike_to_less_than_its_threshold_and_leaves_usual_norms_alone():
    param = torch.zeros(1).requires_grad_()
    optimizer = torch.optim.SGD([param], lr=0.0)
    optimizer.register_step_pre_hook(ZClip(warmup_steps=20))
    left = []
    for number in range(22):
        param.grad = torch.tensor([1.0 + 0.1 * (number % 2) if number < 21 else 50.0])
        optimizer.step()
        left.append(param.grad.item())
    assert left[:21] == pytest.approx([1.0 + 0.1 * (number % 2) for number in range(21)])
    assert left[21] < 1.05 + 2.5 * 0.06


def test_adaptive_clip_bounds_each_unit_by_its_own_weights():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).requires_grad_()
    last = [torch.ones(2).requires_grad_() for _ in range(2)]
    for param in (weight, *last):
        param.grad = torch.ones_like(param)
    optimizer = torch.optim.SGD([weight, *last], lr=0.0)
    optimizer.register_step_pre_hook(AdaptiveGradientClip(0.02))
    optimizer.step()
    torch.testing.assert_close(weight.grad.norm(dim=1), torch.tensor([0.1, 2e-5]))
    assert all(torch.equal(param.grad, torch.ones(2)) for param in last)


def test_a_run_is_one_json_line_that_names_its_job():
    job = sweep.Job("cap 0.1, warm-up 50", studies.NORMALISED, 0.01, seed=1, steps=5)
    result = sweep.run(job, train_canvases=64, held_out_canvases=16)
    assert sweep.job_of(json.loads(json.dumps(result))) == job
    assert result["loss"] > 0
    assert 0 < result["accuracy"] < 1
