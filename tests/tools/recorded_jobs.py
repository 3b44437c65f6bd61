"""The jobs of a study, recorded instead of run."""


def jobs_of(monkeypatch, study, result_of):
    """The jobs that a study runs from now on, in their order; each gives `result_of` it without being run."""
    jobs = []

    def fake_run(job):
        jobs.append(job)
        return result_of(job)

    monkeypatch.setattr(study, "run", fake_run)
    return jobs
