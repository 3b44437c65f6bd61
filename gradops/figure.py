"""A figure that a notebook shows by itself."""

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 120


class Picture(Figure):
    """matplotlib's Figure, drawn without pyplot: a notebook shows it whether or not matplotlib is set up there."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        FigureCanvasAgg(self)

    def png(self) -> bytes:
        """The picture as the bytes of a PNG file."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=DPI)
        return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()
