"""The optimizers by name, and what people use in their place."""

import sys

import pytest
import torch

import gradops
from gradops.optim.classes import class_named, classes, native_class, torchs_class


class Lion(gradops.SGD):
    """Stands for an optimizer that torch has not."""


def test_every_optimizer_of_gradops_is_there_by_its_name():
    assert {"Adam", "AdamW", "SGD"} <= classes().keys()
    assert all(getattr(gradops, name) is cls for name, cls in classes().items())
    assert class_named("adamw") is class_named("ADAMW") is gradops.AdamW
    with pytest.raises(ValueError, match=r"^lomo is none of .*Adam, .*AdamW, "):
        class_named("lomo")


def test_torchs_class_comes_before_timms(monkeypatch):
    assert (native_class(gradops.AdamW), torchs_class(gradops.Adam)) == (torch.optim.AdamW, torch.optim.Adam)
    assert torchs_class(Lion) is None
    optim = pytest.importorskip("timm.optim")
    assert native_class(Lion) is optim.Lion
    monkeypatch.setitem(sys.modules, "timm.optim", None)
    with pytest.raises(ImportError, match=r"torch has no Lion, and timm.* is not installed, which has one"):
        native_class(Lion)
