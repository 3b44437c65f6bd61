"""A figure that is filled from the top, measured in inches, so that panels keep their size whatever stands beside."""

from collections.abc import Iterable

from matplotlib.axes import Axes

from gradops.figure import Picture
from gradops.picture import look

WIDTH, LEFT, RIGHT = 11.0, 2.05, 0.75
BAR, BAR_GAP = 0.16, 0.15
TOP, BOTTOM, GAP = 0.62, 0.55, 0.42


class Sheet:
    """Panels one below the other, of these heights, and rows of several side by side.

    Args:
        heights: of the rows, in inches, in their order.
    """

    def __init__(self, heights: Iterable[float]) -> None:
        self.height = sum(height + GAP for height in heights) - GAP + TOP + BOTTOM
        self.figure = Picture(figsize=(WIDTH, self.height))
        self.below = self.height - TOP

    def panel(self, height: float) -> Axes:
        """A panel as wide as the sheet."""
        return self._row(height, [(LEFT, WIDTH - LEFT - RIGHT)])[0]

    def panel_with_bar(self, height: float) -> tuple[Axes, Axes]:
        """A panel and the place for its colour bar."""
        panel, bar = self._row(height, [(LEFT, WIDTH - LEFT - RIGHT), (WIDTH - RIGHT + BAR_GAP, BAR)])
        return panel, bar

    def panels(self, height: float, count: int) -> list[Axes]:
        """So many panels side by side."""
        left, apart = 0.8, 0.75
        width = (WIDTH - left - 0.3 - apart * (count - 1)) / count
        return self._row(height, [(left + index * (width + apart), width) for index in range(count)])

    def _row(self, height: float, spans: list[tuple[float, float]]) -> list[Axes]:
        bottom = (self.below - height) / self.height
        self.below -= height + GAP
        return [
            self.figure.add_axes((left / WIDTH, bottom, width / WIDTH, height / self.height)) for left, width in spans
        ]

    def space(self) -> None:
        """Leaves room for what stands below the last panel."""
        self.below -= GAP

    def title(self, text: str) -> None:
        """What the sheet says, above everything."""
        at = 1 - 0.12 / self.height
        self.figure.text(0.01, at, text, fontsize=12, color=look.INK, va="top", wrap=True)
