"""Everything between `loss.backward()` and the next forward in one pass over the parameters.

Unscale, inf/NaN detection, global gradient norm, clipping, the optimizer's update and the loss-scale update:
`optimizer = gradops.wrap(torch.optim.AdamW(model.named_parameters(), lr=1e-3), max_norm=1.0)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gradops import ops as ops
from gradops._version import __version__
from gradops.distributed.absent_keys import allow_absent_keys
from gradops.distributed.saving import load_checkpoint, save_checkpoint
from gradops.model.decay_groups import no_decay_groups
from gradops.model.ema import ema_model, ema_weights
from gradops.model.init import init_cnn_
from gradops.moved import keep_earlier_paths
from gradops.one_pass.clip import clip_grad_norm_
from gradops.one_pass.grad_scaler import GradScaler
from gradops.optim import *  # noqa: F403  # every optimizer, wrap and unwrap
from gradops.optim import __all__ as _of_optimizers
from gradops.policies.ema import WeightEma
from gradops.policies.loss_scale import DynamicLossScale
from gradops.policies.relative_step import RelativeStepCap
from gradops.policies.spike_guard import SpikeGuard
from gradops.range_test.curve import LRCurve
from gradops.range_test.finder import lr_find
from gradops.record.recorder import Recorder
from gradops.stats import StepStats

allow_absent_keys()
keep_earlier_paths()

__all__ = [
    *_of_optimizers,
    "DynamicLossScale",
    "GradScaler",
    "LRCurve",
    "Recorder",
    "RelativeStepCap",
    "SpikeGuard",
    "StepStats",
    "WeightEma",
    "__version__",
    "clip_grad_norm_",
    "ema_model",
    "ema_weights",
    "init_cnn_",
    "load_checkpoint",
    "lr_find",
    "no_decay_groups",
    "save_checkpoint",
]

# Modules for other frameworks, which are imported when somebody asks for them.
_FRAMEWORKS = ("accelerate", "fastai", "lightning", "timm", "transformers", "ultralytics")


def __dir__() -> list[str]:
    return sorted(__all__)


# Type checkers would take it for a promise that every name is there.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in _FRAMEWORKS:
            return importlib.import_module(f"gradops.{name}")
        raise AttributeError(f"module 'gradops' has no attribute {name!r}")
