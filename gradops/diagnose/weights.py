"""Findings about the weights: steps that are large beside them, growth, and how a training began."""

import numpy as np

from gradops.diagnose.finding import Finding, number, share, times
from gradops.diagnose.view import View, layer_of

# Of a weight's norm in one step. Healthy runs of this project's networks stay below 0.07, lost ones passed 0.15.
LARGE_STEP = 0.1
LARGE_STEPS = 3
GROWTH, GROWTH_STEPS = 2.0, 10
# Outputs this much larger at the deepest layer than at the first make logits that no loss is made for.
DEEP = 30.0
GAIN_HIGH = 3.0
FADED = 1e-4
LARGE_INPUTS = 10.0


def large_steps(view: View) -> Finding | None:
    """Weights that several updates moved by more than a tenth of their size."""
    run = view.run
    if not view.weights or np.isnan(run.update_ratio).all():
        return None
    # An inf stands for a weight that is 0 after its update: one that moved by all of it.
    ratios = np.nan_to_num(run.update_ratio[:, view.weights], nan=0.0, posinf=1.0, neginf=0.0)
    rows = np.flatnonzero((ratios > LARGE_STEP).any(axis=1))
    if len(rows) < LARGE_STEPS:
        return None
    row = int(rows[0])
    peak_row, peak = np.unravel_index(int(ratios.argmax()), ratios.shape)
    rate = float(np.fmax.reduce(run.lr[peak_row]))
    at = f"lr {number(rate)}" if np.isfinite(rate) else "lr no number"
    text = (
        f"From step {view.step(row)} on, {len(rows)} updates moved a weight by more than a tenth of its own norm "
        f"at once; the largest moved {view.name(run.names[view.weights[peak]])} by {share(float(ratios.max()))} (step "
        f"{view.step(int(peak_row))}, {at}). Healthy runs stay below a tenth."
    )
    return Finding("large steps", text, row, run.names[view.weights[peak]], level="warning")


def growth(view: View) -> Finding | None:
    """The first weight that doubled within ten steps."""
    run = view.run
    rms = run.param_rms[:, view.weights].astype(np.float64)
    if len(view) <= GROWTH_STEPS or not view.weights:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        grown = rms[GROWTH_STEPS:] / rms[:-GROWTH_STEPS]
    found = np.argwhere((grown > GROWTH) & np.isfinite(grown))
    if not len(found):
        return None
    row, index = found[0]
    name = run.names[view.weights[index]]
    text = (
        f"Step {view.step(row + GROWTH_STEPS)}: {view.name(name)} has grown {number(grown[row, index])} times within "
        f"{GROWTH_STEPS} steps."
    )
    return Finding("weight growth", text, int(row) + GROWTH_STEPS, name, level="note")


def depth(view: View) -> Finding | None:
    """Outputs that grow from layer to layer when training begins, because of the initialisation or without one."""
    run = view.run
    if not view.from_start or len(run.layers) < 2 or np.isnan(view.first_rms).all():
        return None
    std = np.where(np.isfinite(run.activation_std[0]), run.activation_std[0], np.nan)
    first = next((float(value) for value in std if value > 0), np.nan)
    grown = float(np.nanmax(std, initial=0)) / first
    if not grown > DEEP or view.normalises:
        return None
    last = run.layers[int(np.nanargmax(std))]
    text = (
        f"At the first step the outputs' standard deviation grows {times(grown)} times from the first layer to "
        f"{view.layer(last)}: {number(first)} to {number(float(np.nanmax(std)))}."
    )
    layer, gain = max(view.gains.items(), key=lambda item: item[1], default=("", 0.0))
    if gain > GAIN_HIGH:
        return Finding(
            "large init",
            f"{text} The weights begin too large: {view.layer(layer)} multiplies the size of its inputs by "
            f"{number(gain)}, where Kaiming's initialisation gives 1.4.",
            0,
            layer,
            level="warning",
        )
    text += " No normalisation was seen, and no weight began too large."
    return Finding("unnormalised depth", text, 0, last, level="warning")


def fading(view: View) -> Finding | None:
    """Gradients that fade from the last layer to the first when training begins, and a loss that never falls."""
    run = view.run
    if not view.from_start or len(view.gains) < 2 or not _has_not_learned(view):
        return None
    layers = list(view.gains)
    places = [next(i for i in view.weights if layer_of(run.names[i]) == layer) for layer in layers]
    # Per element, and over the first steps, since one may be unlucky.
    taken = np.flatnonzero(~run.skipped)[:5]
    strength = np.median(run.norms[taken][:, places] / np.sqrt(run.sizes[places]), axis=0) if len(taken) else [np.nan]
    if not 0 < strength[0] < FADED * strength[-1] < np.inf:
        return None
    gain = float(np.median(list(view.gains.values())))
    text = (
        f"At the first steps the gradient of {view.layer(layers[0])} is {times(float(strength[-1] / strength[0]))} "
        f"times smaller per element than that of {view.layer(layers[-1])}, and the loss has not fallen since: weights "
        f"begin too small, multiplying inputs by {number(gain)}, where Kaiming's initialisation gives 1.4."
    )
    return Finding("small init", text, 0, layers[0])


def _has_not_learned(view: View) -> bool:
    _, loss = view.losses
    return len(loss) >= 20 and bool(np.median(loss[-10:]) > 0.9 * np.median(loss[:5]))


def large_inputs(view: View) -> Finding | None:
    """Inputs that nobody normalised: outputs of the first layer larger than its weights make them of inputs of 1."""
    run = view.run
    if not view.from_start or not run.layers:
        return None
    size = float(run.activation_std[0, 0]) / view.gains.get(run.layers[0], 1.0)
    if not LARGE_INPUTS < size < np.inf:
        return None
    first = view.layer(run.layers[0])
    text = f"The inputs' standard deviation is about {number(size)}, not 1, as the outputs of {first} show."
    return Finding("large inputs", text, 0, run.layers[0], level="note")
