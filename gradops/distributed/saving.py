"""Checkpoints of one or many processes that survive a crash while they are written."""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from gradops.distributed.matching import check_fits

# The file that says which of the folders beside it is the checkpoint.
_LATEST = "latest"


def save_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer, **extra: Any) -> None:
    """Saves model, optimizer and whatever else by torch.distributed.checkpoint, in place of what `path` held.

    Every process of the default process group must call it; without one it works alike. A crash at any moment leaves
    the old checkpoint or the new one, whole: the new one is written beside the old one, and one file, replaced
    atomically, says which of them counts. The disk must hold both for a moment.

    Args:
        path: a folder; made where there is none. All processes must see the same one.
        model: of plain or sharded parameters.
        optimizer: of its parameters.
        **extra: objects with `state_dict` and `load_state_dict`, such as schedulers; or values that
            torch.distributed.checkpoint can save.

    Raises:
        NotADirectoryError: `path` is a file.
    """
    import torch.distributed.checkpoint as dcp

    folder = Path(path)
    before = _agreed(_latest(folder))
    following = folder / str(1 + (int(before.name) if before else 0))
    if _is_first():
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("[0-9]*"):  # by saves that crashed
            if left_over != before:
                shutil.rmtree(left_over)
    _wait_for_all()
    with _one_process_is_meant():
        dcp.save(_state_of(model, optimizer, extra), checkpoint_id=following)
    if _is_first():
        _sync(following)
        _replace(folder / _LATEST, following.name)
        if before:
            shutil.rmtree(before)
    _wait_for_all()


def load_checkpoint(path: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer, **extra: Any) -> None:
    """Loads what `save_checkpoint` saved, into the objects given; the number of processes may be another.

    Args:
        path: as it was saved.
        model: what was saved is put into its parameters.
        optimizer: as for `model`, into its state, param groups and counters.
        **extra: objects by the names that they were saved by, all or some; each has a `load_state_dict`.

    Raises:
        FileNotFoundError: no save into `path` was ever complete.
        NotADirectoryError: `path` is a file.
        ValueError: it is the checkpoint of another model or optimizer, or was saved without an object that is given.
            Nothing is loaded then.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict

    folder = _agreed(_latest(Path(path)))
    if folder is None:
        raise FileNotFoundError(f"no complete checkpoint in {os.fspath(path)}; save_checkpoint makes one there")
    state = _state_of(model, optimizer, extra)
    check_fits(Path(path), folder, state)
    with _one_process_is_meant():
        dcp.load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    """torch warns of every save and load without a process group."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")
        yield


def _state_of(model: nn.Module, optimizer: Optimizer, extra: dict[str, Any]) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {**extra, "model": model_state, "optimizer": optimizer_state}


def _latest(folder: Path) -> Path | None:
    if folder.is_file():
        raise NotADirectoryError(
            f"{folder} is a file, and a checkpoint is a folder: pass one that save_checkpoint made or may make; "
            "torch.load reads the file"
        )
    try:
        return folder / (folder / _LATEST).read_text()
    except FileNotFoundError:
        return None


def _replace(file: Path, text: str) -> None:
    """Gives the file this text, such that after a crash it holds either the old text or the new one."""
    partial = file.with_suffix(".partial")
    with partial.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
    _sync(file.parent)


def _sync(folder: Path) -> None:
    """Makes names in the folder outlive the machine's crash, where the system lets folders be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _agreed(folder: Path | None) -> Path | None:
    """What the first process sees, since a network's file system may show others an older state."""
    if not dist.is_initialized():
        return folder
    box = [folder]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
