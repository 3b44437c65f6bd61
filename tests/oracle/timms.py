"""timm's classes beside those of ours that torch does not have; none where timm is not installed."""

import importlib.util
import inspect

from rules import TABLES

import gradops


def _classes():
    if importlib.util.find_spec("timm") is None:
        return {}
    from timm.optim import Lars, Lion

    return {gradops.LARS: Lars, gradops.Lion: Lion}


TIMMS = _classes()
# Each of our classes with those sets of options that timm's has, too, and a name.
TIMM_CASES = [
    (ours, options, f"{ours.__name__}-{name}")
    for ours, theirs in TIMMS.items()
    for name, options in TABLES[ours.rule.name].options.items()
    if options.keys() <= inspect.signature(theirs).parameters.keys()
]
