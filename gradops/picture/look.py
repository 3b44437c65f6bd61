"""How every panel looks: colours that all eyes tell apart, and that print in grey."""

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from gradops.diagnose.finding import number

INK, PALE, GRID = "#333333", "#777777", "#e6e6e6"
# Okabe and Ito's; what they mark also has a shape of its own.
LINE, CLIPPED, SKIPPED, EVENT = "#0072B2", "#009E73", "#D55E00", "#CC79A7"
# Its brightness rises evenly, so that grey print keeps its order.
COLOURS = "cividis"
NOTHING = "#f0f0f0"


def bare(axes: Axes, title: str) -> None:
    """A title on the left, and no more lines than needed."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)


def gridded(axes: Axes, title: str) -> None:
    """The same, with lines to read values from."""
    bare(axes, title)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def readable_decades(axes: Axes) -> None:
    """Few numbers, and plain ones, on a logarithmic axis, also where it spans less than two decades."""
    low, high = axes.get_ylim()
    steps = (1.0,) if high > 100 * low else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=steps, numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
