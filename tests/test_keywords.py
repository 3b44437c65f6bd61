"""The settings as keywords: help, type checkers and error messages know every one of them."""

import inspect
import typing

import pytest
import torch

import gradops
from gradops.settings import SETTINGS, Settings, SettingsAttributes, SettingsDict


@pytest.mark.parametrize("kind", [SettingsDict, SettingsAttributes])
def test_the_settings_are_the_same_wherever_they_are_listed(kind):
    hints = typing.get_type_hints(Settings)
    assert tuple(hints) == SETTINGS
    assert typing.get_type_hints(kind) == hints


@pytest.mark.parametrize("function", [gradops.wrap, gradops.Adam, gradops.AdamW])
def test_signatures_list_every_setting_with_its_default(function):
    listed = inspect.signature(function).parameters
    for name, default in vars(Settings()).items():
        assert listed[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert listed[name].default == default


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_signatures_begin_with_torchs_arguments(name):
    torchs = dict(inspect.signature(getattr(torch.optim, name)).parameters)
    ours = dict(inspect.signature(getattr(gradops, name)).parameters)
    assert list(ours)[: len(torchs)] == list(torchs)
    assert all(ours[argument].default == torchs[argument].default for argument in torchs)
    assert set(ours) == set(torchs) | set(SETTINGS)


def test_misspelt_keywords_are_refused_by_the_name_of_the_function():
    params = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(TypeError, match=r"^wrap\(\) got an unexpected keyword argument 'max_nrm'"):
        gradops.wrap(torch.optim.AdamW(params), max_nrm=1.0)
    with pytest.raises(TypeError, match=r"AdamW.__init__\(\) got an unexpected keyword argument 'max_nrm'"):
        gradops.AdamW(params, max_nrm=1.0)


SNIPPET = """
import torch
import gradops
optimizer = torch.optim.AdamW([torch.zeros(2)])
gradops.wrap(optimizer, max_norm=1.0, guard=None, l1=1e-4)
gradops.AdamW([torch.zeros(2)], lr=1e-3, max_norm=1.0, amsgrad=True)
gradops.Adam([torch.zeros(2)], 1e-3, decoupled_weight_decay=True)
gradops.wrap(optimizer, max_nrm=1.0)
gradops.AdamW([torch.zeros(2)], max_nrm=1.0)
gradops.wrap(optimizer, max_norm="1")
"""


def test_type_checkers_accept_the_settings_and_refuse_misspelt_ones(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    said, _, _ = mypy.run([str(tmp_path / "snippet.py"), "--no-error-summary", "--follow-imports=silent"])
    wrong = [line for line in said.splitlines() if "error" in line]
    expected = {8: "max_nrm", 9: "max_nrm", 10: "max_norm"}
    assert [int(line.split(":")[1]) for line in wrong] == list(expected), said
    assert all(f'"{name}"' in line for name, line in zip(expected.values(), wrong, strict=True)), said
