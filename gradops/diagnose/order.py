"""What came first: overflowing activations, spiking gradients, or growing weights."""

import numpy as np

from gradops.diagnose import gradients, weights
from gradops.diagnose.finding import Finding
from gradops.diagnose.view import View

# What happened longer before is another story.
LEAD = 50
# In one step the forward pass comes before the backward pass, and that before the update.
WITHIN_STEP = ("activations", "gradient", "weights")


def what_came_first(view: View) -> Finding | None:
    """The order of the first signs of an explosion, each with its step and layer."""
    signs = {
        "activations": _activations(view),
        "gradient": _gradient(view),
        "weights": _weights(view),
    }
    seen = {name: sign for name, sign in signs.items() if sign is not None}
    if len(seen) < 2 or not {"activations", "gradient"} & set(seen):
        return None
    names = sorted(seen, key=lambda name: (seen[name][0], WITHIN_STEP.index(name)))
    words = [f"{seen[name][1]} (step {view.step(seen[name][0])})" for name in names]
    first = {"activations": "activations", "gradient": "the gradient", "weights": "the weights"}[names[0]]
    return Finding("order", f"First came {first}: {', then '.join(words)}.", seen[names[0]][0], level="note")


def _gradient(view: View) -> tuple[int, str] | None:
    event = gradients.explosion(view)
    if event is None:
        return None
    layer, departure = gradients.first_layer(view, event) or ("", event)
    return departure.row, f"the gradient of {view.name(layer)} left its history" if layer else "the gradient norm did"


def _activations(view: View) -> tuple[int, str] | None:
    run, found = view.run, []
    event = gradients.explosion(view)
    since = event.row - LEAD if event else 0
    for index, layer in enumerate(run.layers):
        rows = [item.row for item in view.activation_leaves[index] if item.row >= since][:1]
        found += [(row, index, f"outputs of {view.name(layer)} left their history") for row in rows]
        overflown = np.flatnonzero(run.activation_nonfinite[:, index])[:1]
        found += [(int(row), index, f"outputs of {view.name(layer)} overflowed") for row in overflown]
    return (min(found)[0], min(found)[2]) if found else None


def _weights(view: View) -> tuple[int, str] | None:
    grown = weights.growth(view)
    return (grown.row, f"{view.name(grown.layer or '')} doubled") if grown and grown.row is not None else None
