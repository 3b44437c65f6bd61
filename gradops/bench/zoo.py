"""Models by name: from the user's own file, torchvision or timm."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

LIBRARIES = ("torchvision.models", "timm")


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


def _libraries() -> dict[str, ModuleType]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] != name.split(".")[0]:
                raise
    return found


def make_model(name: str) -> nn.Module:
    """A model with fresh weights.

    Args:
        name: "path.py:function", or what torchvision or timm call it, asked in this order.

    Raises:
        ModelError: nothing of that name is found; if neither library is installed, with the extra that installs them.
    """
    if ".py:" in name:
        model = load_function(name)()
        if not isinstance(model, nn.Module):
            raise ModelError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
        return model
    libraries = _libraries()
    if (torchvision := libraries.get("torchvision.models")) and name in torchvision.list_models():
        return torchvision.get_model(name, weights=None)
    if (timm := libraries.get("timm")) and timm.is_model(name):
        return timm.create_model(name, pretrained=False)
    if not libraries:
        raise ModelError(f"{name}: neither torchvision nor timm is installed: run pip install 'gradops[models]'")
    raise ModelError(f"{name} is in none of {', '.join(libraries)}; a model of your own is path.py:function")
