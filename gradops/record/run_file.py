"""The file of a run that is under way."""

import os
import time
import warnings
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

    Raises:
        FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError: no file can be written there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.path.abspath(path)
        _check(self._path)
        self._written_at, self._took = time.monotonic(), 0.0  # seconds

    def write(self, run: "Run") -> None:
        """Writes the file; warns where that fails, a full disk say: training goes on."""
        begin = time.monotonic()
        try:
            run.save(self._path)
        except OSError as error:
            message = f"gradops.Recorder could not write {self._path} ({error}); recording goes on, and it tries again"
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        self._written_at = time.monotonic()
        self._took = self._written_at - begin

    def write_if_cheap(self, make_run: Callable[[], "Run"]) -> None:
        """Writes the file unless the last time took too much of the time since."""
        if self._took <= _SHARE * (time.monotonic() - self._written_at):
            self.write(make_run())


def _check(path: str) -> None:
    folder = os.path.dirname(path)
    if not os.path.exists(folder):
        raise FileNotFoundError(f"path: there is no directory {folder}")
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"path: {folder} is no directory")
    if os.path.isdir(path):
        raise IsADirectoryError(f"path must name a file, got the directory {path}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"path: no file may be written into {folder}")
