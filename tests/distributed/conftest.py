"""The processes that tests of several ranks share."""

import pytest
import torch.distributed as dist
from workers import Workers


@pytest.fixture(scope="session")
def workers():
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    group = Workers()
    yield group
    group.stop()
