"""How far a build is: a bar where rich is installed and somebody watches, else a line a file."""

import contextlib
import sys
from typing import Any


class Progress:
    """Shows files compiled of files to compile; a context manager.

    Args:
        title: what stands before the bar.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        with contextlib.suppress(ModuleNotFoundError):
            if sys.stdout.isatty():
                from rich import progress

                columns = (
                    progress.TextColumn("{task.description}"),
                    progress.BarColumn(),
                    progress.MofNCompleteColumn(),
                    progress.TimeElapsedColumn(),
                    progress.TextColumn("{task.fields[source]}"),
                )
                self._bar = progress.Progress(*columns, transient=True)
                self._task = self._bar.add_task(self._title, total=None, source="")
                self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, source: str) -> None:
        """One more file is compiled, or the last ones are linked."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, source=source)
        elif source:
            print(f"[{done}/{total}] {source}", flush=True)

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        (self._bar.console.print if self._bar is not None else print)(line)
