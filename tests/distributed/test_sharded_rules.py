"""Every rule's step on shards is the unsharded one."""

import pytest
import torch
from layouts import train
from rules import CASE_NAMES, EVERY_CASE, reference_of
from test_sharded_step import assert_equals_unsharded, assert_ranks_agree

import gradops

SETTINGS = {
    "clip": {"max_norm": 0.5},
    "cap": {"max_norm": 0.5, "l1": 0.02, "max_relative_step": gradops.RelativeStepCap(0.003, warmup_steps=2)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize(("cls", "options"), EVERY_CASE, ids=CASE_NAMES)
def test_step_of_shards_is_the_unsharded_one(workers, cls, options, settings):
    of_groups = {key: value for key, value in options.items() if key != "lr"}
    steps = 8 if hasattr(reference_of(cls), "adapts") else 3  # of either kind
    arguments = ({**of_groups, **settings}, steps, None, 1.0, torch.float32, cls)
    results = workers.run(2, train, "fsdp", 2, *arguments)
    assert_ranks_agree(results)
    assert_equals_unsharded(results[0], train(None, 1, *arguments))
    assert bool(results[0]["stats"].capped.any()) == ("max_relative_step" in settings)
