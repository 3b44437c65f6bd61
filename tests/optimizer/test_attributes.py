"""Settings as attributes: checked when they are set, near misses refused, other people's attributes let through."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from refused import make

import gradops
from gradops.one_pass.attributes import nearest
from gradops.settings import SETTINGS
from gradops.torch_before_2_7 import name_decay_before_2_7

NUMBERS = ("max_norm", "norm_type", "clip_value", "max_relative_step", "loss_scale", "l1")
# What torch, its schedulers and scalers, and the frameworks put on optimizers that they are given.
OTHERS = (
    "step",
    "zero_grad",
    "train",
    "eval",
    "defaults",
    "state",
    "param_groups",
    "grad_scale",
    "found_inf",
    "optimizer",
    "is_overflow",
    "initial_lr",
    "accumulate",
    "accelerator_state",
    "scaler",
    "swap_parameters",
    "master_params",
    "is_second_order",
    "gradient_accumulation_steps",
    "num_steps",
    "name",
    "_opt_called",
    "_step_count",
    "_amp_stash",
    "_max_norm",
    "_on_before_step",
)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("maxnorm", "max_norm"),
        ("max_nrom", "max_norm"),
        ("max_grad_norm", "max_norm"),
        ("MAX_NORM", "max_norm"),
        ("clipvalue", "clip_value"),
        ("loss_scaling", "loss_scale"),
        ("guards", "guard"),
        ("track_update", "track_updates"),
        ("moment_dtype", "moments_dtype"),
        ("L1", "l1"),
    ],
)
def test_misspelt_setting_is_refused_by_the_name_of_the_near_one(misspelt, meant):
    optimizer, _ = make(gradops.AdamW)
    with pytest.raises(AttributeError, match=f"AdamW has no setting '{misspelt}'; did you mean '{meant}'"):
        setattr(optimizer, misspelt, 1.0)
    assert not hasattr(optimizer, misspelt)


@pytest.mark.parametrize("name", OTHERS)
def test_what_torch_and_the_frameworks_set_is_none_of_the_settings(name):
    optimizer, _ = make(gradops.AdamW)
    setattr(optimizer, name, marker := object())
    assert getattr(optimizer, name) is marker


def test_a_subclass_may_have_what_it_declares():
    class Mine(gradops.AdamW):
        max_norms = None

    optimizer = Mine([torch.zeros(2, requires_grad=True)])
    optimizer.max_norms = 1.0
    assert optimizer.max_norms == 1.0


def test_every_settings_name_is_its_own_nearest():
    assert [nearest(name) for name in SETTINGS] == list(SETTINGS)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["1", "1e3", b"1", True, np.True_, torch.tensor(True), torch.ones(2), 1j], ids=str)
def test_what_is_no_number_is_refused_by_calls_and_assignments_alike(name, value):
    optimizer, _ = make()
    kind = ValueError if name == "loss_scale" and isinstance(value, str) else TypeError
    with pytest.raises(kind, match=name):
        gradops.wrap(optimizer, **{name: value})
    with pytest.raises(kind, match=name):
        make(gradops.AdamW, **{name: value})
    gradops.wrap(optimizer)
    before = getattr(optimizer, name)
    with pytest.raises(kind, match=name):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", [1, np.float32(1), np.float64(1), np.int64(1), np.array(1.0), Fraction(1), torch.tensor(1.0)], ids=repr
)
def test_every_kind_of_number_gives_the_bits_of_a_float(name, value):
    def trained(setting):
        model = torch.nn.Linear(6, 3, bias=False)
        torch.nn.init.constant_(model.weight, 0.5)
        optimizer = gradops.AdamW(model.parameters(), **{name: setting})
        setattr(optimizer, name, setting)
        torch.manual_seed(0)
        for _ in range(2):
            optimizer.backward(model(torch.randn(4, 6)).square().mean())
            optimizer.step()
        return model.weight

    torch.testing.assert_close(trained(value), trained(1.0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("policy", "names"),
    [
        (gradops.RelativeStepCap, ("cap", "warmup_steps", "floor")),
        (gradops.SpikeGuard, ("ratio", "z_score", "lr_cut", "recovery_steps", "min_lr_factor", "history")),
        (gradops.DynamicLossScale, ("init_scale", "growth_factor", "growth_interval", "min_scale", "max_scale")),
    ],
)
@pytest.mark.parametrize("value", ["1", True, None])
def test_policies_take_numbers_only(policy, names, value):
    cap = {"cap": 0.1} if policy is gradops.RelativeStepCap else {}
    for name in names:
        with pytest.raises(TypeError, match=f"{name} must be a number, got {value!r}"):
            policy(**{**cap, name: value})


@pytest.mark.parametrize(
    "name", ["backend", "rounding", "clip_mode", "moments_dtype", "master_weights", "track_updates"]
)
def test_choices_are_checked_when_they_are_assigned(name):
    optimizer, _ = make(gradops.AdamW)
    before = getattr(optimizer, name)
    with pytest.raises((TypeError, ValueError), match=f"{name} must be .*'neither'"):
        setattr(optimizer, name, "neither")
    assert getattr(optimizer, name) == before


def test_repr_shows_the_settings_and_none_of_the_counters():
    optimizer, _ = make()
    cap, guard = gradops.RelativeStepCap(0.1, warmup_steps=100), gradops.SpikeGuard()
    gradops.wrap(optimizer, max_norm=1.0, max_relative_step=cap, guard=guard, loss_scale="dynamic", backend="torch")
    said = repr(optimizer)
    assert said.startswith("AdamW (\n")
    for line in ("max_norm: 1.0", f"max_relative_step: {cap}", f"guard: {guard}", "loss_scale: 'dynamic'"):
        assert f"    {line}\n" in said
    assert "    backend: torch\n" in said
    assert "gradops_" not in said
    assert "clip_value" not in said, "a default that few change"
    optimizer.max_norm, optimizer.clip_value = 0.5, 2.0
    assert "    max_norm: 0.5\n" in repr(optimizer)
    assert "    clip_value: 2.0\n" in repr(optimizer)


def test_repr_says_what_runs_the_steps():
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    optimizer = gradops.AdamW([param], backend="torch")
    optimizer.step()
    assert f"    backend: torch ({optimizer.stats.backend})\n" in repr(optimizer)
    optimizer.backend = "native"
    assert "    backend: native\n" in repr(optimizer), "not run yet"


def test_repr_has_torchs_groups():
    optimizer, _ = make()
    name_decay_before_2_7(optimizer)
    torchs = [line for line in repr(optimizer).splitlines() if "param_names" not in line]
    said = repr(gradops.wrap(optimizer)).splitlines()
    assert said[said.index("Parameter Group 0") :] == torchs[1:]


def test_copies_and_pickles_are_checked_too():
    optimizer, _ = make(gradops.AdamW)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert repr(other) == repr(optimizer)
        with pytest.raises(AttributeError, match="max_norm"):
            other.maxnorm = 1.0
