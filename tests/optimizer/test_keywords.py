"""The settings as keywords: help, type checkers and error messages know every one of them."""

import inspect
import re
import typing
from dataclasses import fields

import pytest
import torch
from rules import CLASSES, TORCHS

import gradops
from gradops import settings_text
from gradops.settings import SETTINGS, Settings, SettingsAttributes, SettingsDict


@pytest.mark.parametrize("kind", [SettingsDict, SettingsAttributes])
def test_the_settings_are_the_same_wherever_they_are_listed(kind):
    hints = typing.get_type_hints(Settings)
    assert tuple(hints) == SETTINGS
    assert typing.get_type_hints(kind) == hints


@pytest.mark.parametrize("function", [gradops.wrap, *CLASSES])
def test_signatures_list_every_setting_with_its_default(function):
    listed = inspect.signature(function).parameters
    for name, default in vars(Settings()).items():
        assert listed[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert listed[name].default == default


@pytest.mark.parametrize("cls", TORCHS)
def test_signatures_begin_with_torchs_arguments(cls):
    torchs = dict(inspect.signature(cls).parameters)
    ours = dict(inspect.signature(TORCHS[cls]).parameters)
    assert list(ours)[: len(torchs)] == list(torchs)
    assert all(ours[argument].default == torchs[argument].default for argument in torchs)
    assert set(ours) == set(torchs) | set(SETTINGS)


def test_misspelt_keywords_are_refused_by_the_name_of_the_function():
    params = [torch.zeros(2, requires_grad=True)]
    with pytest.raises(
        TypeError, match=r"^wrap\(\) got an unexpected keyword argument 'max_nrm'; did you mean 'max_norm'\?"
    ):
        gradops.wrap(torch.optim.AdamW(params), max_nrm=1.0)
    with pytest.raises(TypeError, match=r"^wrap\(\) got an unexpected keyword argument 'colour'$"):
        gradops.wrap(torch.optim.AdamW(params), colour="red")
    with pytest.raises(TypeError, match=r"AdamW.__init__\(\) got an unexpected keyword argument 'max_nrm'"):
        gradops.AdamW(params, max_nrm=1.0)


@pytest.mark.parametrize("function", [gradops.wrap, *CLASSES])
def test_help_is_whole_by_itself(function):
    """Every keyword with its meaning and its default, on lines that fit."""
    said = inspect.getdoc(function)
    assert "**settings" not in said
    starts = [said.index(f"\n    {name}: ") for name in SETTINGS]
    assert starts == sorted(starts)
    for field, start in zip(fields(Settings), starts, strict=True):
        text = " ".join(re.split(r"\n    \w|\n\n", said[start + 6 :])[0].split())
        assert len(text) > 30, text
        assert f"By default {field.default!r}" in text
    assert max(map(len, said.splitlines())) <= 116


def test_every_setting_has_a_meaning():
    assert tuple(settings_text.MEANING) == SETTINGS
