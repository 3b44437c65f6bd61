"""Whether a picture or a page can be written where somebody wants it, asked before the work begins."""

import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg


def check_picture(option: str, path: Path | None) -> None:
    """Exits with a sentence if no picture can be written to `path`: no such folder, or a suffix that is no format's."""
    if path is None:
        return
    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix.lstrip(".").lower() not in known:
        sys.exit(f"{option} {path}: a picture's name ends in one of .{', .'.join(known)}")
    check_folder(option, path)


def check_folder(option: str, path: Path | None) -> None:
    """Exits with a sentence if `path` is in no folder that there is."""
    if path is not None and not path.parent.is_dir():
        sys.exit(f"{option}: there is no directory {path.parent}")
