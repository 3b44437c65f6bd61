"""Runs of an optimizer beside the oracle, which holds it to account after every step."""

from beside import Beside
from cases import draw_grad, group_options, sequences

import gradops


def any_sequence(cls, device, data, cases, settings):
    """Steps of ordinary, missing and non-finite gradients, as hypothesis' `data` draws them."""
    params = [case.param(device) for case in cases]
    both = Beside(cls([{"params": params, **data.draw(group_options(cls))}], **settings), **settings)
    for events in data.draw(sequences(len(cases))):
        both.step(
            [draw_grad(case, event, both.oracle.scale, device) for case, event in zip(cases, events, strict=True)]
        )


def steps_of(case, device, steps, lr, **settings):
    """Ordinary steps of one parameter; returns what the oracle says of each."""
    both = Beside(gradops.AdamW([case.param(device)], lr=lr, **settings), **settings)
    return [both.step([case.grad(device=device)]) for _ in range(steps)]
