"""ZeroRedundancyOptimizer, which the one pass cannot serve."""

import gc
import sys
from itertools import chain
from types import FrameType
from typing import Any

MODULE = "torch.distributed.optim.zero_redundancy_optimizer"
REFUSAL = (
    "ZeroRedundancyOptimizer hands each process's optimizer a part of the parameters, so that norm clipping and the "
    "inf check would be those of this part and the processes would step apart; shard the model with "
    "torch.distributed.fsdp.fully_shard, whose parameters gradops steps as a whole."
)


def is_zero(value: Any) -> bool:
    """Whether the value is a ZeroRedundancyOptimizer."""
    module = sys.modules.get(MODULE)
    return module is not None and issubclass(type(value), module.ZeroRedundancyOptimizer)


def check_owner(optimizer: Any) -> None:
    """Refuses a ZeroRedundancyOptimizer and the optimizer inside of one, which does not know that it is.

    Raises:
        TypeError: it is one of them.
    """
    if MODULE not in sys.modules:
        return
    zeros = _with_subclasses(sys.modules[MODULE].ZeroRedundancyOptimizer)
    if _was_made(type(optimizer)) and not any(map(_was_made, zeros)):
        return
    if is_zero(optimizer) or any(is_zero(owner) and owner.optim is optimizer for owner in gc.get_objects()):
        raise TypeError(REFUSAL)


def _was_made(cls: Any) -> bool:
    """Whether torch has marked the class's step, as it does when it makes the first object of an optimizer's class."""
    return getattr(getattr(cls, "step", None), "hooked", False)


def _with_subclasses(cls: type) -> list[type]:
    below = map(_with_subclasses, cls.__subclasses__())
    return [cls, *chain.from_iterable(below)]


def check_builder() -> None:
    """Refuses to be built by a ZeroRedundancyOptimizer, which shows nowhere but on the stack.

    Raises:
        TypeError: one is being initialised.
    """
    if MODULE not in sys.modules:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_init_local_optimizer" and is_zero(frame.f_locals.get("self")):
            raise TypeError(REFUSAL)
        frame = frame.f_back
