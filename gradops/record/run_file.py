"""The file of a run that is under way."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradops.record.run import Run

# Writing may take this share of the time: a file is written as a whole, so a long record is written less often.
_SHARE = 0.01


class RunFile:
    """Written again and again while the record grows; a reader always finds a whole one.

    Args:
        path: of the .npz file; a relative one is taken from here, wherever the program goes later.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)
        self._written_at, self._took = time.monotonic(), 0.0  # seconds

    def write(self, run: "Run") -> None:
        """Writes the file."""
        begin = time.monotonic()
        run.save(self._path)
        self._written_at = time.monotonic()
        self._took = self._written_at - begin

    def write_if_cheap(self, make_run: Callable[[], "Run"]) -> None:
        """Writes the file unless the last time took too much of the time since."""
        if self._took <= _SHARE * (time.monotonic() - self._written_at):
            self.write(make_run())
