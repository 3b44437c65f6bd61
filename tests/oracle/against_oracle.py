"""Runs of an optimizer beside the oracle, which holds it to account after every step."""

import math

import torch
from beside import Beside
from cases import ParamCase, draw_grad, group_options, sequences
from rules import reference_of

import gradops


def _steps_of_either_kind(cls, usual):
    """Enough updates for a rule of which the first few differ from the rest."""
    return usual + 4 if hasattr(reference_of(cls), "adapts") else usual


def every_kind_of_step(cls, options, settings, device):
    """Steps of parameters of every dtype and size, one of them without a gradient once, and one step with an inf."""
    cases = [ParamCase((31, 33)), ParamCase((17,), magnitude=30.0), ParamCase((), magnitude=1e-3)]
    cases += [ParamCase((5, 7), dtype, grad_dtype=dtype) for dtype in (torch.bfloat16, torch.float16)]
    optimizer = cls([case.param(device) for case in cases], **options, **settings)
    both, steps = Beside(optimizer, **settings), _steps_of_either_kind(cls, 4)
    for step in range(steps):
        grads = [case.grad(both.oracle.scale, device) for case in cases]
        if step == 2:
            grads[1][3] = math.inf
        both.step([None if (step, place) == (1, 0) else grad for place, grad in enumerate(grads)])
    assert (int(optimizer.stats.steps_taken), int(optimizer.stats.steps_skipped)) == (steps - 1, 1)


def any_sequence(cls, device, data, cases, settings):
    """Steps of ordinary, missing and non-finite gradients, as hypothesis' `data` draws them."""
    params = [case.param(device) for case in cases]
    both = Beside(cls([{"params": params, **data.draw(group_options(cls))}], **settings), **settings)
    for events in data.draw(sequences(len(cases), _steps_of_either_kind(cls, 5))):
        both.step(
            [draw_grad(case, event, both.oracle.scale, device) for case, event in zip(cases, events, strict=True)]
        )


def steps_of(case, device, steps, lr, **settings):
    """Ordinary steps of one parameter; returns what the oracle says of each."""
    both = Beside(gradops.AdamW([case.param(device)], lr=lr, **settings), **settings)
    return [both.step([case.grad(device=device)]) for _ in range(steps)]
