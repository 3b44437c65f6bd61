"""Whether a checkpoint fits the objects that it is loaded into, before anything of them changes."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gradops.distributed.absent_keys import is_ours


def check_fits(path: Path, folder: Path, state: dict[str, Any]) -> None:
    """Compares names and shapes of what was saved with those of `state`; reads no tensor.

    Args:
        path: what the user calls the checkpoint.
        folder: the save in it that counts.
        state: what is about to be loaded into: "model", "optimizer", and the user's further objects.

    Raises:
        ValueError: the checkpoint is of another model or optimizer, or lacks an object.
    """
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

    metadata = FileSystemReader(folder).read_metadata()
    planner = DefaultLoadPlanner()
    planner.set_up_planner({name: _as_saved(value) for name, value in state.items()}, metadata)
    here, there = planner.state_dict, metadata.state_dict_metadata
    for name in state.keys() - {"model", "optimizer"}:
        if any(_of(name, here)) and not any(_of(name, there)):
            raise ValueError(f"the checkpoint in {path} was saved without {name}; leave {name} out of the call")
    model_here, model_there = set(_of("model", here)), set(_of("model", there))
    for keys, verb in ((model_here - model_there, "lacks"), (model_there - model_here, "also has")):
        if keys:
            raise ValueError(f"the checkpoint in {path} is of another model: it {verb} {_some(keys)}")
    _check_shapes(path, {key: value for key, value in here.items() if key in model_here}, there)
    missing = {key for key in set(_of("optimizer", here)) - there.keys() if not is_ours(key)}
    if missing:
        raise ValueError(
            f"the checkpoint in {path} is of another optimizer or other settings of it: it lacks {_some(missing)}"
        )


def _check_shapes(path: Path, here: Mapping[str, Any], there: Mapping[str, Any]) -> None:
    shapes = {
        key: f"{list(there[key].size)} there, {list(value.size())} here"
        for key, value in here.items()
        if isinstance(value, Tensor) and getattr(there[key], "size", value.size()) != value.size()
    }
    for key, difference in shapes.items():
        more = f", and {len(shapes) - 1} more differ" if len(shapes) > 1 else ""
        raise ValueError(f"the checkpoint in {path} is of another model: {key} is {difference}{more}")


def _as_saved(value: Any) -> Any:
    return value.state_dict() if hasattr(value, "state_dict") else value


def _of(name: str, keys: Mapping[str, Any]) -> Iterator[str]:
    """The keys of the object of that name."""
    return (key for key in keys if key == name or key.startswith(f"{name}."))


def _some(keys: set[str]) -> str:
    first, *others = sorted(keys)
    return f"{first} and {len(others)} more" if others else first
