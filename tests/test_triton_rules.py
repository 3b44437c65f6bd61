"""Update rules in Triton: which there are, and that their data fits the rule's. Steps test what they compute."""

import dataclasses
import subprocess
import sys
from itertools import product

import pytest

from gradops.backends.triton import rules
from gradops.optim.adam import RULE as ADAM

GROUPS = [
    pytest.param(ADAM, {"betas": (beta1, 0.999), "eps": 1e-8, "amsgrad": amsgrad}, id=f"adam-{beta1}-{amsgrad}")
    for beta1, amsgrad in product((0.9, 0.0), (False, True))
]


@pytest.mark.parametrize(("rule", "group"), GROUPS)
def test_variants_have_the_moments_of_the_rule(rule, group):
    pytest.importorskip("triton", minversion="3.6")
    code = rules.load(rule)
    used = code.MOMENTS[code.variant_of(rule.hyper_of(group))]
    assert tuple(rule.moment_names[slot] for slot in used) == rule.moments_of(group)


def test_a_rule_without_a_file_is_missing():
    assert not rules.missing(ADAM)
    assert rules.missing(dataclasses.replace(ADAM, name="unheard_of", title="Unheard")) == (
        "no Triton kernel updates by Unheard"
    )


def test_what_is_missing_is_known_without_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from gradops.backends.triton import rules\n"
        "from gradops.optim.adam import RULE\n"
        "assert rules.missing(RULE) == ''"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
