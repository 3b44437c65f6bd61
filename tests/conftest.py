"""Fixtures and hypothesis profiles: "default" for every run, "long" for nightly ones (--hypothesis-profile=long)."""

import contextlib
import os
import random

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from gradops.backends import choose
from gradops.settings import BACKENDS

# It loads a hypothesis profile of its own, and must not do so after us. It needs expecttest, which not everybody has.
with contextlib.suppress(ModuleNotFoundError):
    import torch.testing._internal.common_utils

# Shared machines pause for longer than any deadline that would still find slow examples.
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
# Shrinking takes minutes; a failure is replayed, and shrunk, by --hypothesis-profile=long.
settings.register_profile("default", max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate], **common)
settings.register_profile("interpreter", max_examples=3, phases=[Phase.explicit, Phase.generate], **common)
settings.register_profile("long", max_examples=1000, **common)
settings.load_profile("default")


if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()


def usable_backends():
    """Pairs of backend and device type: all that can run here, or the one that the CPU interprets or emulates."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return [("triton", "cpu")]
    if "GRADOPS_EMULATED_FORM" in os.environ:
        return [("native", "cpu")]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    pairs = [(name, device) for device in devices for name in BACKENDS]
    return [(name, device) for name, device in pairs if not choose.missing(name, device)]


@pytest.fixture(params=usable_backends(), ids="-".join)
def backend(request, monkeypatch):
    """Runs a test once for each backend and device: the one that optimizers take which ask for none.

    It skips where the backend has no twin of an optimizer's update rule.
    """
    name, _ = request.param
    backend_for = choose.backend_for

    def chosen(device, rule=None, wanted=None):
        if wanted is None and rule is not None and (reason := choose.missing_rule(name, rule)):
            pytest.skip(reason)
        return backend_for(device, rule, wanted or name)

    monkeypatch.setattr(choose, "backend_for", chosen)
    return name


@pytest.fixture
def device(backend, request):
    """The device of the backend that the test runs with."""
    return torch.device(request.node.callspec.params["backend"][1])


@pytest.fixture(autouse=True)
def fixed_seed():
    random.seed(0)
    torch.manual_seed(0)
