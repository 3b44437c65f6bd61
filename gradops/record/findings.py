"""Trouble while it happens: a callback for each finding, at the ring's read-outs."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gradops import shortcuts

if TYPE_CHECKING:
    from gradops.diagnose.finding import Finding
    from gradops.record.run import Run

# Looking may take this share of the time; and at the last steps only, since it takes longer the more they are.
_SHARE = 0.05
STEPS = 1024
# Findings of one moment: the next of the same kind is another one.
_MOMENTS = ("odd batch", "odd loss", "single spike", "bad targets")


class FindingCalls:
    """Calls `callback` once for each failure and each warning of the report.

    Raises:
        ModuleNotFoundError: the extra `report` is not installed.
    """

    def __init__(self, callback: Callable[["Finding"], object]) -> None:
        shortcuts.check_reports("Recorder(on_finding=...)")
        self._callback = callback
        self._called: set[tuple[str, str | int | None]] = set()
        self._looked_at, self._took = time.monotonic(), 0.0  # seconds

    def look_if_cheap(self, make_run: Callable[[], "Run"]) -> None:
        """Looks unless the last time took too much of the time since."""
        if self._took <= _SHARE * (time.monotonic() - self._looked_at):
            self.look(make_run())

    def look(self, run: "Run") -> None:
        """Looks at these steps."""
        if not len(run.steps):
            return
        begin = time.monotonic()
        found = shortcuts.report(run, "Recorder(on_finding=...)").findings
        self._looked_at = time.monotonic()
        self._took = self._looked_at - begin
        for finding in found:
            key = finding.kind, finding.step if finding.kind in _MOMENTS else finding.layer
            if finding.trouble and key not in self._called:
                self._called.add(key)
                self._callback(finding)
