"""Update rules in Triton: which there are, and that their data fits the rule's. Steps test what they compute."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from rules import CASE_NAMES, EVERY_CASE

from gradops.backends.triton import rules as triton_rules
from gradops.optim.adam import RULE as ADAM


@pytest.mark.parametrize(("cls", "options"), EVERY_CASE, ids=CASE_NAMES)
def test_variants_have_the_moments_of_the_rule(cls, options):
    pytest.importorskip("triton", minversion="3.3")
    rule, group = cls.rule, cls([torch.zeros(1)], **options).param_groups[0]
    code = triton_rules.load(rule)
    used = code.MOMENTS[code.variant_of(rule.hyper_of(group))]
    assert tuple(rule.moment_names[slot] for slot in used) == rule.moments_of(group)


def test_a_rule_without_a_file_is_missing():
    assert not triton_rules.missing(ADAM)
    assert triton_rules.missing(dataclasses.replace(ADAM, name="unheard_of", title="Unheard")) == (
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
