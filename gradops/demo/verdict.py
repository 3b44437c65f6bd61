"""What happened in the runs, in words, worked out from their records."""

import math
import statistics

from gradops.demo.training import LAST_STEPS, Run
from gradops.diagnose.finding import number

# Below this share of the loss of blind guessing a run counts as having learned something.
LEARNED = 0.8
# Half of what the demo takes by default: in fewer steps a sound run may not have learned yet, unless its loss left.
ENOUGH_STEPS, LEFT = 160, 2.0


def learned(run: Run, guessing: float) -> bool:
    """Whether the run ended better than answers that do not look at the canvas."""
    return math.isfinite(run.final_loss) and run.final_loss < LEARNED * guessing


def too_few(run: Run, guessing: float) -> bool:
    """Whether the run may have been too short to learn, so that not having learned says nothing."""
    if len(run.steps) >= ENOUGH_STEPS or not math.isfinite(run.final_loss):
        return False
    # One step's spike is in the mean of the last ones, and says nothing of where the loss is.
    usual = statistics.median(step.loss for step in run.steps[-LAST_STEPS:])
    return usual < LEFT * guessing and not learned(run, guessing)


def verdict(runs: list[Run], guessing: float) -> str:
    """One sentence per run, for the runs in their order.

    Args:
        runs: finished runs.
        guessing: loss of the best answer that does not look at the canvas.
    """
    return "\n".join(_sentence(run, guessing) for run in runs)


def _sentence(run: Run, guessing: float) -> str:
    spike = "no spike" if run.first_spike is None else f"spike at step {run.first_spike}"
    if not math.isfinite(run.final_loss):
        return f"{run.name} learned nothing: its loss is no number any more, {spike}."
    loss = f"loss {number(run.final_loss)} (guessing {number(guessing)})"
    if too_few(run, guessing):
        return f"{run.name}: too few steps for a verdict, {loss}."
    end = "learned" if learned(run, guessing) else "learned nothing"
    return f"{run.name} {end}: {loss}, {spike}."
