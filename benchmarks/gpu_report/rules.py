"""Stage 3: what every update rule promises, in the forms of stage 2: the tests of tests/rules that need a device.

test_steps.py compares every rule's steps with the oracle's, with every setting, weight averages among them. Triton
compiles kernels for each rule and setting, so that it has a part for each few classes.
"""

from benchmarks.gpu_report.right import AT_ONCE, FORMS, in_form, in_forms
from benchmarks.gpu_report.runner import Command, Target

__all__ = ["AT_ONCE", "NAME", "commands"]

NAME = "rules"
STEPS = "tests/rules/test_steps.py"
FILES = (
    "tests/rules/test_adagrad.py",
    "tests/rules/test_bound.py",
    "tests/rules/test_late_moments.py",
    "tests/rules/test_optimizers.py",
    "tests/rules/test_own.py",
    "tests/rules/test_rmsprop.py",
    "tests/rules/test_trust_ratio.py",
)
REHEARSED = ("tests/rules/test_trust_ratio.py",)
# What the names of classes begin with; "Adam" is AdamW and Adamax, too.
CLASSES = ("Adagrad", "Adam", "LARS", "Lion", "NAdam", "RAdam", "RMSprop", "SGD")


def commands(target: Target) -> list[Command]:
    if target.rehearsal:
        return in_forms(target, REHEARSED)
    compiled = [in_form(target, "triton", STEPS, of=name) for name in CLASSES]  # first, since they take longest
    others = tuple(form for form in FORMS if form != "triton")
    return compiled + in_forms(target, (STEPS,), others) + in_forms(target, FILES)
