"""Module paths of earlier versions, for code that imports them and for pickles that name them."""

import sys
from types import ModuleType
from typing import Any

from gradops.model.decay_groups import no_decay_groups
from gradops.model.init import init_cnn_
from gradops.one_pass.clip import clip_grad_norm_
from gradops.one_pass.grad_scaler import GradScaler
from gradops.policies.loss_scale import DynamicLossScale
from gradops.policies.relative_step import RelativeStepCap
from gradops.policies.spike_guard import SpikeGuard

_NAMES: dict[str, list[Any]] = {
    "clip": [clip_grad_norm_],
    "decay_groups": [no_decay_groups],
    "init": [init_cnn_],
    "loss_scale": [DynamicLossScale, GradScaler],
    "relative_step": [RelativeStepCap],
    "spike_guard": [SpikeGuard],
}


def keep_earlier_paths() -> None:
    """Makes `gradops.<module>` importable with the public names that each had."""
    for module, names in _NAMES.items():
        path = f"gradops.{module}"
        earlier = ModuleType(path, "Moved; `gradops` itself has these names.")
        vars(earlier).update((name.__name__, name) for name in names)
        sys.modules[path] = earlier
        setattr(sys.modules["gradops"], module, earlier)
