"""How long a benchmark run takes, and what its JSON says about the machine."""

from gradops.bench import machine


def pytest_addoption(parser):
    parser.addoption("--case-seconds", type=float, default=15.0, help="time for the samples of one case (15)")


def pytest_benchmark_update_machine_info(machine_info):
    """Keeps what explains a figure; a machine's own name does not."""
    machine_info.clear()
    machine_info.update(machine.describe())


def pytest_benchmark_update_json(output_json):
    """Drops the samples, which fill megabytes; medians and spreads stay."""
    output_json["commit_info"] = {key: output_json["commit_info"].get(key) for key in ("id", "dirty")}
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)
