"""What methods of records, reports and curves open above them: reports, pictures and pages.

Imports everywhere run downward; the ones here run upward, and so only when somebody asks. They need the extra `report`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradops.diagnose import Comparison, Report
    from gradops.figure import Picture
    from gradops.range_test.curve import LRCurve
    from gradops.record.run import Run


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Imports inside the block that fail say what installs the extra `report`, which `name` needs."""
    try:
        yield
    except ModuleNotFoundError as missing:
        needed = f"{name} needs {missing.name}: run pip install 'gradops[report]'"
        raise ModuleNotFoundError(needed, name=missing.name) from missing


def check_reports(asked: str) -> None:
    """Raises ModuleNotFoundError where a report could not be made; `asked` is what needs it, as in all that follow."""
    with extra(asked):
        import gradops.diagnose  # noqa: F401


def report(run: "Run", asked: str) -> "Report":
    with extra(asked):
        from gradops.diagnose import report
    return report(run)


def comparison(first: "Run", second: "Run", asked: str) -> "Comparison":
    with extra(asked):
        from gradops.diagnose import compare
    return compare(first, second)


def picture(run: "Run", path: str | os.PathLike[str] | None, layers: Sequence[str] | None, asked: str) -> "Picture":
    with extra(asked):
        from gradops.picture import plot
    return plot(run, path, layers)


def picture_of_both(pair: "Comparison", path: str | os.PathLike[str] | None, asked: str) -> "Picture":
    with extra(asked):
        from gradops.picture.pair import draw
    return draw(pair, path)


def picture_of_curve(curve: "LRCurve", path: str | os.PathLike[str] | None, asked: str) -> "Picture":
    with extra(asked):
        from gradops.range_test.picture import draw
    return draw(curve, path)


def page(run: "Run", path: str | os.PathLike[str], asked: str) -> None:
    with extra(asked):
        from gradops.picture.page import write
    write(run, path)
