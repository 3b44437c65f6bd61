"""Models by name: from the user's own file, torchvision or timm."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from torch import nn


class ModelError(Exception):
    """Nothing can be made of a name; the message says why, for people."""


def load_function(reference: str) -> Callable[..., Any]:
    """The function that "path.py:function" names.

    Raises:
        ModelError: the file or the function is not there.
    """
    path, _, name = reference.rpartition(":")
    file = Path(path)
    spec = importlib.util.spec_from_file_location(file.stem, file) if file.is_file() else None
    if spec is None or spec.loader is None:
        raise ModelError(f"{reference}: there is no Python file {path or reference}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ModelError(f"{reference}: {path} has no function {name}")
    return function


def _library(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != name.split(".")[0]:
            raise
        return None


def make_model(name: str) -> nn.Module:
    """A model with fresh weights.

    Args:
        name: "path.py:function", or what torchvision or timm call it, asked in this order.

    Raises:
        ModelError: nothing of that name is found; if a library is not installed, with the extra that installs it.
    """
    if ".py:" in name:
        model = load_function(name)()
        if not isinstance(model, nn.Module):
            raise ModelError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
        return model
    torchvision = _library("torchvision.models")
    if torchvision is not None and name in torchvision.list_models():
        return cast(nn.Module, torchvision.get_model(name, weights=None))
    timm = _library("timm")
    if timm is not None and timm.is_model(name):
        return cast(nn.Module, timm.create_model(name, pretrained=False))
    if torchvision is None or timm is None:
        raise ModelError(f"{name} needs torchvision or timm: run pip install 'gradops[models]'")
    raise ModelError(f"neither torchvision nor timm has {name}; a model of your own is path.py:function")
