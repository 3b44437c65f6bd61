"""Frameworks are imported on demand, and a missing one names the extra that installs it."""

import importlib
import subprocess
import sys

import pytest

FRAMEWORKS = ["accelerate", "fastai", "lightning", "timm", "transformers", "ultralytics"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_missing_framework_names_the_extra(framework, monkeypatch):
    for name in [name for name in sys.modules if f"{name}.".startswith((f"{framework}.", f"gradops.{framework}."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    extra = "ultralytics" if framework == "ultralytics" else "frameworks"
    with pytest.raises(ModuleNotFoundError, match=rf"needs {framework}.*: run pip install 'gradops\[{extra}\]'"):
        importlib.import_module(f"gradops.{framework}")


def test_gradops_imports_no_framework():
    code = f"import sys, gradops; assert not {set(FRAMEWORKS)} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
