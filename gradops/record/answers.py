"""What a record says, in words and in pictures; needs the extra `report`."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from gradops import shortcuts

if TYPE_CHECKING:
    from gradops.diagnose import Report
    from gradops.figure import Picture
    from gradops.record.run import Run


class Answers(Protocol):
    """Report, picture and page of the run that `run` gives; each waits for the device."""

    def run(self) -> "Run": ...

    def report(self) -> "Report":
        """What happened, in plain words: print it, or read its `cause`, `findings` and `remedies`.

        Raises:
            ModuleNotFoundError: the extra `report` is not installed.
            ValueError: nothing was recorded yet.
        """
        return shortcuts.report(self.run(), "Recorder.report")

    def plot(self, path: str | os.PathLike[str] | None = None, layers: Sequence[str] | None = None) -> "Picture":
        """The run as one picture, a matplotlib figure that a notebook shows; see `gradops.picture.plot`.

        Args:
            path: where to write it, in the format that its suffix names; None for nowhere.
            layers: names of the layers whose outputs are shown; None for twelve, those of the report among them.

        Raises:
            ModuleNotFoundError: the extra `report` is not installed.
            ValueError: nothing was recorded yet, or a layer was not watched.
        """
        return shortcuts.picture(self.run(), path, layers, "Recorder.plot")

    def _repr_html_(self) -> str | None:
        return self.run()._repr_html_()

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes the run as one interactive page, which needs nothing else.

        Raises:
            ModuleNotFoundError: the extra `report` is not installed.
            ValueError: nothing was recorded yet.
        """
        shortcuts.page(self.run(), path, "Recorder.to_html")
