"""What a check found: a plain sentence, and where and when."""

from dataclasses import dataclass
from typing import Literal

# A failure did harm, a warning may, and a note is worth knowing.
Level = Literal["failure", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One observation.

    Attributes:
        kind: the name by which causes and remedies know it.
        text: a sentence for people.
        row: the row of the run at which it began; None for what holds all along.
        layer: the layer or parameter it is about, if it is about one.
        level: how bad it is.
        step: the attempted step of that row, as the text has it; the report fills it in.
    """

    kind: str
    text: str
    row: int | None = None
    layer: str | None = None
    level: Level = "failure"
    step: int | None = None

    @property
    def trouble(self) -> bool:
        """Whether it is more than a note."""
        return self.level != "note"


def quoted(name: str) -> str:
    """A layer's name among words: many are bare numbers."""
    return f"`{name}`"


def counted(count: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number(value: float) -> str:
    """Three digits, and no more zeros than one can read."""
    return f"{value:.3g}"


def times(ratio: float) -> str:
    """A ratio, for "... times"."""
    return f"{ratio:,.0f}" if 10 <= ratio < 1e5 else number(ratio)


def share(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if fraction in (0, 1) or 0.005 <= fraction < 0.995 else f"{100 * fraction:.1f} %"
