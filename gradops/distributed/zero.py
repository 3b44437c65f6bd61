"""ZeroRedundancyOptimizer, which the one pass cannot serve."""

import gc
import sys
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
    return bool(_zeros(type(value)))


def check_owner(optimizer: Any) -> None:
    """Refuses a ZeroRedundancyOptimizer and the optimizer inside of one, which does not know that it is.

    Raises:
        TypeError: it is one of them.
    """
    if MODULE not in sys.modules:
        return
    objects = gc.get_objects()
    # By their types first, of which there are few.
    classes = _zeros(*set(map(type, objects)))
    owners = [each for each in objects if type(each) in classes] if classes else []
    if is_zero(optimizer) or any(owner.optim is optimizer for owner in owners):
        raise TypeError(REFUSAL)


def _zeros(*classes: type) -> set[type]:
    """Those of the classes whose objects are a ZeroRedundancyOptimizer."""
    module = sys.modules.get(MODULE)
    return {cls for cls in classes if module is not None and issubclass(cls, module.ZeroRedundancyOptimizer)}


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
