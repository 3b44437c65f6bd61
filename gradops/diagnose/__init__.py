"""The diagnosis of a recorded run: checks that find, a table that concludes, and what to do about it."""

from gradops.diagnose.comparison import Comparison, compare
from gradops.diagnose.report import Report, report

__all__ = ["Comparison", "Report", "compare", "report"]
