"""What the demo prints: progress while it runs, then a table and what happened in a sentence."""

import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from gradops.demo.training import SPIKE_LEAST, Run, Task, guessing_loss
from gradops.demo.verdict import verdict
from gradops.diagnose.finding import number


class Screen:
    """Writes to a terminal with colours and live bars, and plain lines anywhere else."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def announce(self, task: Task, optimizer: str, emulated: bool) -> None:
        """Says what is about to be trained."""
        self.say(
            f"{len(task.train)} canvases of real handwritten digits; a 12-block CNN without normalisation;\n"
            f"{task.steps} steps of {optimizer}, {task.precision}, learning rate up to {task.lr:g}, seed {task.seed}."
        )
        if emulated:
            self.say("No float16 arithmetic on this CPU: float16 values, summed in float32.")

    @contextmanager
    def progress(self, task: Task) -> Iterator[Callable[[Run], None]]:
        """A bar per run; the function it yields moves the bar of the run it is given."""
        if not self.console.is_terminal:
            yield self._report_plainly(task)
            return
        columns = ("{task.fields[name]:12}", "loss {task.fields[loss]}", "norm {task.fields[norm]}")
        text = [TextColumn(column) for column in columns]
        skipped = TextColumn("skipped {task.fields[skipped]:3}")
        with Progress(text[0], BarColumn(14), MofNCompleteColumn(), *text[1:], skipped, console=self.console) as bars:
            rows: dict[str, TaskID] = {}

            def report(run: Run) -> None:
                last = run.steps[-1]
                fields: dict[str, Any] = {
                    "loss": number(last.loss),
                    "norm": f"{last.grad_norm:8.2g}",
                    "skipped": run.skipped,
                }
                if run.name not in rows:
                    rows[run.name] = bars.add_task("", total=task.steps, name=run.name, **fields)
                bars.update(rows[run.name], advance=1, **fields)

            yield report

    def _report_plainly(self, task: Task) -> Callable[[Run], None]:
        def report(run: Run) -> None:
            step, last = len(run.steps), run.steps[-1]
            if step % max(1, task.steps // 4) == 0:
                self.say(
                    f"{run.name:12}  step {step:4} of {task.steps}  loss {number(last.loss)}"
                    f"  norm {last.grad_norm:8.2g}  skipped {run.skipped}"
                )

        return report

    def table(self, task: Task, runs: list[Run]) -> None:
        """Prints one column per run, and the sentence that sums them up."""
        table = Table(box=box.SIMPLE_HEAD if self.console.is_terminal else box.ASCII2)
        table.add_column("")
        for run in runs:
            table.add_column(run.name, justify="right")
        for label, cell in ROWS:
            table.add_row(label, *(cell(run) for run in runs))
        self.console.print(table)
        self.say(verdict(runs, guessing_loss(task)))


def _milliseconds(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.2f} ms"


def _spike(run: Run) -> str:
    if run.first_spike is not None:
        return f"step {run.first_spike}"
    return "none" if len(run.steps) > SPIKE_LEAST else "too few steps"


ROWS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("final loss", lambda run: number(run.final_loss)),
    ("labels right, held-out digits", lambda run: f"{100 * run.accuracy:.1f} %"),
    ("largest gradient norm", lambda run: "-" if math.isnan(run.largest_norm) else f"{run.largest_norm:.2g}"),
    ("first spike", _spike),
    ("dead units in the head", lambda run: f"{run.steps[-1].dead_units} of {run.units}"),
    ("skipped steps", lambda run: str(run.skipped)),
    ("time per step (median)", lambda run: _milliseconds([step.seconds for step in run.steps])),
    ("of it in the optimizer", lambda run: _milliseconds([step.optimizer_seconds for step in run.steps])),
)
