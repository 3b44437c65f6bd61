"""Steps of every rule beside the oracle, with every setting, on every backend."""

import pytest
import torch
from against_oracle import any_sequence, every_kind_of_step
from cases import param_cases, settings_of_the_step
from hypothesis import given
from hypothesis import strategies as st

import gradops
from rules import CASE_NAMES, CLASSES, EVERY_CASE, goes_with, reference_of, table_of

GUARD = gradops.SpikeGuard(ratio=2.0, z_score=2.0, action="clip", warmup_steps=2)
SETTINGS = {
    "clip": {"max_norm": 0.5},
    "clip_value": {"clip_value": 0.5, "max_norm": 0.5},
    "cap": {"max_relative_step": gradops.RelativeStepCap(0.01, warmup_steps=4), "max_norm": 0.5},
    "cap and L1": {"max_relative_step": 0.01, "l1": 0.1},
    "loss scale": {"loss_scale": gradops.DynamicLossScale(init_scale=64.0, growth_interval=2), "max_norm": 1.0},
    "masters": {"master_weights": True},
    "kahan": {"rounding": "kahan", "max_relative_step": 0.01},
    "bf16 moments": {"moments_dtype": torch.bfloat16},
    "guard": {"guard": GUARD},
    "agc": {"clip_mode": "agc", "max_norm": 0.02},
    "ema": {"ema": gradops.WeightEma(0.75, every=2, start=1), "max_norm": 1.0},
    "ema of masters": {"ema": gradops.WeightEma(0.9, inv_gamma=1.0), "master_weights": True},
    "ema and kahan": {"ema": gradops.WeightEma(0.9, tau=2.0), "rounding": "kahan", "track_updates": True},
    "ema and agc": {"ema": gradops.WeightEma(0.6), "clip_mode": "agc", "max_norm": 0.02},
    "tracked": {"track_updates": True, "max_norm": 1.0},
}


@pytest.mark.parametrize("cls", CLASSES)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_any_sequence_of_steps_equals_the_oracle(cls, device, data, seed):
    torch.manual_seed(seed)
    settings = data.draw(settings_of_the_step(cls))
    any_sequence(cls, device, data, data.draw(st.lists(param_cases(), min_size=1, max_size=4)), settings)


def pairs():
    """Options with settings that go with them; slow unless the settings clip, or the options are the first or last."""
    for name, (cls, options) in zip(CASE_NAMES, EVERY_CASE, strict=True):
        first, *_, last = table_of(cls).options.values()
        for setting, settings in SETTINGS.items():
            usual = setting == "clip" or options in (first, last)
            if goes_with(cls, settings):  # else it is refused, as test_bound.py has it
                marks = [] if usual else [pytest.mark.slow]
                yield pytest.param(cls, options, settings, id=f"{name}-{setting}", marks=marks)


@pytest.mark.parametrize(("cls", "options", "settings"), list(pairs()))
def test_every_option_with_every_setting_equals_the_oracle(cls, options, settings, device):
    every_kind_of_step(cls, options, settings, device)


@pytest.mark.parametrize("cls", CLASSES)
def test_oracle_and_optimizer_agree_on_what_the_rule_is(cls):
    rule, oracle = cls.rule, reference_of(cls)
    assert (rule.moment_names, rule.scale_free) == (oracle.MOMENTS, oracle.SCALE_FREE)
    assert {scalar.name: scalar.start for scalar in rule.scalars} == getattr(oracle, "SCALARS", {})
    group = cls([torch.ones(2).requires_grad_()]).param_groups[0]
    assert rule.decouples(group) == oracle.decouples(group)
    assert len(rule.hyper_of(group)) == len(rule.hyper)
    assert set(rule.group_keys) <= group.keys()
