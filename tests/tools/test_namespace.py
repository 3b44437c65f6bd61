"""What `gradops.` offers: public names only, and frameworks on demand."""

import importlib
import importlib.util
import subprocess
import sys

import pytest

import gradops

FRAMEWORKS = ["accelerate", "fastai", "lightning", "timm", "transformers", "ultralytics"]


def test_dir_lists_the_public_names_only():
    assert dir(gradops) == sorted(gradops.__all__)
    assert all(hasattr(gradops, name) for name in dir(gradops))


def test_a_name_that_there_is_not_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'gradops' has no attribute 'warp'"):
        gradops.warp  # noqa: B018


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_frameworks_module_is_imported_when_it_is_asked_for(framework, monkeypatch):
    monkeypatch.delitem(vars(gradops), framework, raising=False)
    monkeypatch.setitem(sys.modules, f"gradops.{framework}", module := object())
    assert getattr(gradops, framework) is module


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_asking_for_a_missing_framework_names_the_extra(framework, monkeypatch):
    for name in [name for name in sys.modules if f"{name}.".startswith((f"{framework}.", f"gradops.{framework}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(gradops), framework, raising=False)
    monkeypatch.setitem(sys.modules, framework, None)
    extra = "ultralytics" if framework == "ultralytics" else "frameworks"
    with pytest.raises(ModuleNotFoundError, match=rf"gradops.{framework} needs {framework}.*'gradops\[{extra}\]'"):
        getattr(gradops, framework)


def test_help_on_the_package_imports_no_framework():
    code = f"import sys, gradops; help(gradops); assert not {set(FRAMEWORKS)} & set(sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "wrap(" in said


def test_every_module_for_a_framework_can_be_asked_for():
    assert set(gradops._FRAMEWORKS) == set(FRAMEWORKS)
    assert all(importlib.util.find_spec(f"gradops.{framework}") for framework in FRAMEWORKS)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("clip", ["clip_grad_norm_"]),
        ("decay_groups", ["no_decay_groups"]),
        ("init", ["init_cnn_"]),
        ("loss_scale", ["DynamicLossScale", "GradScaler"]),
        ("relative_step", ["RelativeStepCap"]),
        ("spike_guard", ["SpikeGuard"]),
    ],
)
def test_earlier_module_paths_have_what_users_imported_from_them(module, names):
    earlier = importlib.import_module(f"gradops.{module}")
    assert [getattr(earlier, name) for name in names] == [getattr(gradops, name) for name in names]
    assert getattr(gradops, module) is earlier
