"""What the GPU kit's own processes do with a step, on the CPU or with the emulated CUDA backend."""

import json
import os

import pytest
from cases import needs_native

import gradops
from benchmarks.gpu_report import dram, sanitized_rules, sanitizer
from gradops.bench import forms
from gradops.bench.optimizers import subject
from gradops.bench.recipes import make_grads, make_params

pytestmark = needs_native
emulated = pytest.mark.skipif("GRADOPS_EMULATED_FORM" not in os.environ, reason="a CPU has one form; see `make test`")


@pytest.fixture(autouse=True)
def form_as_before():
    before = gradops._C.allow_one_launch(True)
    gradops._C.allow_one_launch(before)
    yield
    gradops._C.allow_one_launch(before)


def test_the_step_that_ncu_watches_says_how_many_parameters_it_has(capsys):
    dram._step("3x100", "cpu")
    assert json.loads(capsys.readouterr().out) == {"params": 300, "estimate": None}


@pytest.mark.parametrize(("program", "steps"), [(sanitizer, 10), (sanitized_rules, 18)])
def test_small_steps_are_taken_in_both_forms(program, steps, capsys):
    program._steps("cpu")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == steps
    assert all(line.endswith(" 3") for line in lines)


@emulated
@pytest.mark.parametrize(("program", "steps"), [(sanitizer, 4), (sanitized_rules, 9)])
def test_small_steps_run_in_both_forms(program, steps, capsys):
    program._steps("cpu")
    lines = capsys.readouterr().out.splitlines()
    one = os.environ["GRADOPS_EMULATED_FORM"] == "one_launch"
    assert sum(line.startswith("one cooperative launch") for line in lines) == (steps if one else 0)
    assert sum(line.startswith("two launches: one launch is switched off") for line in lines) >= steps


@emulated
def test_the_form_of_two_launches_is_chosen_for_that_recipe_alone():
    params = make_params([(5,)] * 3, make_grads([(5,)] * 3))
    step = forms._two_launches(subject("AdamW"))(params)
    assert step.__self__.stats.backend == "two launches: one launch is switched off"
    step()
    other = gradops.AdamW(params)
    other.step()
    assert "switched off" not in other.stats.backend
