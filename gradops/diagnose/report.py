"""What a recorded run says: findings, the cause they point to, and what to do."""

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html import escape

from rich.console import Console

from gradops import notebook, shortcuts
from gradops.diagnose import activations, gradients, losses, order, settings, weights
from gradops.diagnose.causes import CAUSES, NOTES, UNKNOWN, Cause
from gradops.diagnose.finding import Finding, counted
from gradops.diagnose.remedies import Remedy, remedies_for
from gradops.diagnose.view import View
from gradops.record.run import Run

CHECKS: tuple[Callable[[View], Finding | None], ...] = (
    gradients.left_history,
    losses.exploded,
    losses.spike,
    order.what_came_first,
    gradients.nonfinite,
    activations.overflow,
    activations.odd_batch,
    losses.alone,
    activations.spoilt_statistics,
    weights.large_steps,
    weights.growth,
    weights.depth,
    weights.fading,
    weights.large_inputs,
    gradients.dead,
    settings.clipping,
    settings.clipped_before,
    settings.scale_floor,
    settings.skips,
    losses.ended,
)
WIDTH = 80
LEVELS = ("failure", "warning", "note")
# Fewer steps show no course.
ENOUGH = 20
CONTEXT = ("weight growth", "order", "loss spike")


@dataclass(frozen=True, repr=False)
class Report:
    """The diagnosis of one run.

    Attributes:
        summary: one sentence on what was recorded.
        causes: the cause found and, after it, further ones; empty for a healthy run.
        titles: the causes in words, with layer and step.
        findings: everything that was seen, in the order of the checks.
        remedies: what to do, the fittest first.
        unseen: why finding nothing would say little; empty where it says what it says.
        run: what it is about, for its picture in a notebook.
    """

    summary: str
    causes: tuple[Cause, ...]
    titles: tuple[str, ...]
    findings: tuple[Finding, ...]
    remedies: tuple[Remedy, ...]
    unseen: str = ""
    run: Run | None = field(default=None, compare=False)

    @property
    def cause(self) -> str | None:
        """The name of the cause; None for a healthy run."""
        return self.causes[0].name if self.causes else None

    @property
    def verdict(self) -> str:
        """The causes in a sentence, and how many failures, warnings and notes there are."""
        counts = [counted(sum(finding.level == level for finding in self.findings), level) for level in LEVELS]
        said = ", ".join(count for count in counts if not count.startswith("0"))
        return self._conclusion() + (f" ({said})" if said else "")

    def _conclusion(self) -> str:
        if self.causes:
            also = f" Also: {'; '.join(self.titles[1:])}." if self.titles[1:] else ""
            return f"{self.titles[0]}.{also}"
        if any(finding.level == "failure" for finding in self.findings):
            return "Something failed."
        if any(finding.trouble for finding in self.findings):
            return "Nothing failed, but there are warnings."
        return self.unseen or "Nothing wrong was found."

    def print(self, console: Console) -> None:
        """Prints the report on a terminal or into a file."""
        console.print(self.summary, markup=False)
        console.print(self.verdict, style="bold", markup=False)
        for title, lines in self._sections(console.width):
            console.print(f"\n{title}", style="bold", markup=False)
            for line in lines:
                console.print(line, markup=False, soft_wrap=True)

    def _sections(self, width: int) -> list[tuple[str, list[str]]]:
        def item(text: str) -> str:
            return textwrap.fill(text, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)

        found = [
            item(f"{finding.level}: {finding.text}" if finding.trouble else finding.text) for finding in self.findings
        ]
        advice = [f"{item(remedy.advice)}\n  {remedy.command}" for remedy in self.remedies]
        return [(title, lines) for title, lines in (("What was seen", found), ("What to do", advice)) if lines]

    def __str__(self) -> str:
        file = io.StringIO()
        self.print(Console(file=file, width=WIDTH, color_system=None))
        return file.getvalue()

    def __repr__(self) -> str:
        return f"<gradops Report: {self.verdict}>"

    def _repr_html_(self) -> str | None:
        return notebook.html_or_none(self._html)

    def _html(self) -> str:
        said = [notebook.heading(self.verdict.replace("`", "")), notebook.paragraph(self.summary)]
        said += [f"<h5>What was seen</h5>{notebook.listed(map(_finding_html, self.findings))}"] if self.findings else []
        said += [f"<h5>What to do</h5>{notebook.listed(map(_remedy_html, self.remedies))}"] if self.remedies else []
        if self.run is not None:
            said.append(notebook.image(shortcuts.picture(self.run, None, None, "A report's picture"), self.summary))
        return "".join(said)


def _finding_html(finding: Finding) -> str:
    level = f"<b>{finding.level}</b>: " if finding.trouble else ""
    return level + notebook.with_code(finding.text)


def _remedy_html(remedy: Remedy) -> str:
    why = f"<p>{escape(remedy.why)}</p><p>The guide's section: <code>{remedy.command}</code></p>"
    return f"{escape(remedy.advice)}<details><summary>{escape(remedy.heading)}</summary>{why}</details>"


def report(run: Run) -> Report:
    """Says in plain words what happened in a recorded run, and what to do.

    Args:
        run: what a `gradops.Recorder` saw.

    Raises:
        ValueError: the run has no steps.
    """
    if not len(run.steps):
        raise ValueError("the run has no steps: nothing was recorded")
    view = View(run)
    findings = [_with_step(finding, view) for check in CHECKS if (finding := check(view)) is not None]
    causes = _causes(findings)
    titles = tuple(_title(cause, view, findings) for cause in causes)
    if not causes:
        # Growth is how a network learns, and worth a word only where something went wrong.
        findings = [finding for finding in findings if finding.trouble or finding.kind not in CONTEXT]
    return Report(_summary(view), causes, titles, tuple(findings), _remedies(causes, findings, run), _unseen(view), run)


def _with_step(finding: Finding, view: View) -> Finding:
    return finding if finding.row is None else replace(finding, step=view.step(finding.row))


def _causes(findings: list[Finding]) -> tuple[Cause, ...]:
    kinds = {finding.kind for finding in findings}
    fitting = {cause.name: cause for cause in reversed(CAUSES) if cause.fits(kinds)}
    ordered = tuple(cause for cause in CAUSES if fitting.get(cause.name) is cause)
    return ordered or ((UNKNOWN,) if UNKNOWN.fits(kinds) else ())


def _title(cause: Cause, view: View, findings: list[Finding]) -> str:
    source = cause.source(findings)
    return cause.title.format(
        layer=view.layer(source.layer or ""),
        name=view.name(source.layer or ""),
        step=None if source.row is None else view.step(source.row),
    )


def _remedies(causes: tuple[Cause, ...], findings: list[Finding], run: Run) -> tuple[Remedy, ...]:
    keys = [key for cause in causes for key in cause.remedies]
    keys += [key for finding in findings for key in NOTES.get(finding.kind, ())]
    remedies = remedies_for(bool(run.about.get("by_gradient")))
    return tuple(remedies[key] for key in dict.fromkeys(keys))


def _unseen(view: View) -> str:
    """Why this record could not show what was wrong."""
    rows, _ = view.losses
    no_loss = "" if len(rows) else "no loss was recorded"
    if len(view) < ENOUGH:
        return f"Too little for a diagnosis: {counted(len(view), 'step')}{f', and {no_loss}' if no_loss else ''}."
    return f"Nothing wrong was found in the gradients; {no_loss} (recorder.loss)." if no_loss else ""


def _summary(view: View) -> str:
    run = view.run
    watched = f"outputs of {counted(len(run.layers), 'layer')}" if run.layers else "no activations"
    params = f"{counted(len(run.names), 'parameter')} in {counted(len(view.layers), 'layer')}"
    return f"Steps {view.step(0)} to {view.step(len(view) - 1)}: {params}, {watched}."
