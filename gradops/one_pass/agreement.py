"""Whether all processes of sharded parameters take the same step."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import Tensor

from gradops.distributed.gather import Gathering
from gradops.distributed.shards import is_sharded
from gradops.settings import SETTINGS

# Of a group: what each process has of its own, or what describes a run and not how it goes on.
_OWN = ("params", "param_names")


def check_agreement(optimizer: Any) -> None:
    """Compares settings, groups and parameters with those of the other processes, which must call it too.

    Tensors among them, as a rate on the device, are not compared. Does nothing where no parameter is a DTensor.

    Raises:
        RuntimeError: on every process, if they differ; the message says in what, and who has what.
    """
    params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
    if not any(map(is_sharded, params)):
        return
    gathering = Gathering(params)
    mine = dict(_of(optimizer))
    digest = hashlib.sha256(repr(mine).encode()).hexdigest()
    if len(set(gathering.gather_objects(digest))) == 1:
        return
    every: list[dict[str, str]] = gathering.gather_objects(mine)
    for what in dict.fromkeys(chain.from_iterable(every)):
        ranks: dict[str, list[int]] = {}
        for rank, of_rank in zip(gathering.ranks, every, strict=True):
            ranks.setdefault(of_rank.get(what, "nothing"), []).append(rank)
        if len(ranks) > 1:
            found = "; ".join(f"{value} on rank{'s' * (len(of) > 1)} {_listed(of)}" for value, of in ranks.items())
            raise RuntimeError(f"gradops: the processes' optimizers differ in {what}: {found}. They must be alike")


def _of(optimizer: Any) -> Iterable[tuple[str, str]]:
    yield "class", type(optimizer).__name__
    for name in SETTINGS:
        value = getattr(optimizer, name)
        yield name, ("a model" if value is not None else "None") if name == "protect" else repr(value)
    for index, group in enumerate(optimizer.param_groups):
        shapes = [list(param.shape) for param in group["params"]]
        yield f"the parameters' shapes of group {index}", repr(shapes)
        yield from _of_group(group, f" of group {index}")


def _of_group(group: Mapping[str, Any], whose: str) -> Iterable[tuple[str, str]]:
    for key, value in group.items():
        if key not in _OWN and not key.startswith("gradops_") and not isinstance(value, Tensor):
            yield key + whose, repr(value)


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
