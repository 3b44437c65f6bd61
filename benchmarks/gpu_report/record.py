"""The one JSON that all stages add to."""

import datetime
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

OK, FAILED, TIMED_OUT, MISSING, REFUSED = "ok", "failed", "timed out", "missing", "refused"
STYLES = {OK: "green", FAILED: "bold red", TIMED_OUT: "bold red", MISSING: "yellow", REFUSED: "yellow"}


class Record:
    """What each part of each stage found, written to `path` after every part.

    Attributes:
        document: {"stages": {stage: {part: entry}}}; an entry has status, said, found, seconds, command, commit, when.
    """

    def __init__(self, path: Path, commit: str) -> None:
        self.path, self.commit = path, commit
        self.document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"stages": {}}

    def has(self, stage: str, part: str) -> bool:
        """Whether the part succeeded at this very commit."""
        entry = self.document["stages"].get(stage, {}).get(part, {})
        return entry.get("status") == OK and entry.get("commit") == self.commit and not self.commit.endswith("+")

    def add(self, stage: str, part: str, entry: dict[str, Any]) -> None:
        """Puts the entry in place of the part's last one."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.document["stages"].setdefault(stage, {})[part] = {**entry, "commit": self.commit, "when": now}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_suffix(".half")
        half.write_text(json.dumps(self.document, indent=1) + "\n")
        half.replace(self.path)

    def print_summary(self, console: Console, stages: list[str]) -> int:
        """How the parts of these stages went; returns 1 if some failed."""
        table = Table(box=box.SIMPLE_HEAD, title="GPU report", title_justify="left")
        table.add_column("stage")
        for status, style in STYLES.items():
            table.add_column(status, justify="right", style=style)
        table.add_column("seconds", justify="right")
        failed = False
        for stage in stages:
            entries = list(self.document["stages"].get(stage, {}).values())
            counts = [sum(entry["status"] == status for entry in entries) for status in STYLES]
            table.add_row(stage, *(str(count or "") for count in counts), f"{sum(e['seconds'] for e in entries):.0f}")
            failed |= any(entry["status"] in (FAILED, TIMED_OUT) for entry in entries)
        console.print(table)
        console.print(f"results: {self.path}", markup=False)
        return int(failed)
