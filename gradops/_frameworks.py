"""What the modules for other frameworks share."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gradops.one_pass import OnePass
from gradops.param_groups import params_of
from gradops.settings import Settings


@contextmanager
def needs(framework: str) -> Iterator[None]:
    """Around a module's imports from a framework: names the extra that installs it where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"gradops.{framework} needs {error.name}: run pip install 'gradops[frameworks]'", name=error.name
        ) from error


@contextmanager
def settings_for(optimizer: torch.optim.Optimizer, settings: dict[str, Any]) -> Iterator[None]:
    """The optimizer has other settings for a while; its own come back, whatever happens."""
    own = {name: getattr(optimizer, name) for name in settings}
    vars(optimizer).update(settings)
    try:
        yield
    finally:
        vars(optimizer).update(own)


def settings_with(settings: dict[str, Any], model: torch.nn.Module | None) -> dict[str, Any]:
    """A door's settings as `gradops.wrap` takes them: `protect=True` means the model that the framework trains."""
    return {**settings, "protect": model} if settings.get("protect") is True else settings


def check_settings(settings: dict[str, Any]) -> None:
    """Refuses settings that `gradops.wrap` would refuse, before there is a model.

    Raises:
        ValueError, TypeError: a setting is out of its range.
    """
    Settings(**settings_with(settings, None)).checked()


def clips_in_its_step(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> bool:
    """Whether clipping the parameters' gradients is clipping the optimizer's: its own, no more and no fewer."""
    if not isinstance(optimizer, OnePass):
        return False
    with_grad = {param for param in parameters if param.grad is not None}
    return with_grad == {param for param in params_of(optimizer.param_groups) if param.grad is not None}
