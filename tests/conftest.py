"""Fixtures and hypothesis profiles: "default" for every run, "long" for nightly ones (--hypothesis-profile=long)."""

import pytest
import torch
import torch.testing._internal.common_utils  # loads a hypothesis profile of its own, and must not do so after us
from hypothesis import HealthCheck, Phase, settings

# Shared machines pause for longer than any deadline that would still find slow examples.
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
# Shrinking takes minutes; a failure is replayed, and shrunk, by --hypothesis-profile=long.
settings.register_profile("default", max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate], **common)
settings.register_profile("long", max_examples=1000, **common)
settings.load_profile("default")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
