"""The report on a terminal of 80 columns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table as RichTable

from gradops.profile.tables import Table

MANY = 6


def show(console: Console, table: Table) -> None:
    """Prints one table and its note."""
    console.print(f"\n{table.title}", style="bold", markup=False)
    # Eight columns fit into 80 characters only without space around them.
    look = RichTable(box=box.SIMPLE_HEAD if console.is_terminal else box.ASCII2, padding=(0, len(table.header) <= MANY))
    for index, header in enumerate(table.header):
        look.add_column(header, justify="right" if index else "left", overflow="fold")
    for index, row in enumerate(table.rows):
        look.add_row(*row, style="bold" if index in table.emphasis else None)
    console.print(look)
    if table.note:
        console.print(table.note, markup=False)


@contextmanager
def progress(console: Console, title: str, steps: int) -> Iterator[Callable[[str], object]]:
    """A bar that the function it yields moves, on a terminal."""
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(title, total=steps)
        yield lambda name: bars.update(bar, advance=1, description=f"{title}, {name}")
