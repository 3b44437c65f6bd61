"""timm: its factory, clipping, scaler and average with gradops's optimizers.

Importing this module

* registers `gradopsadamw`, `gradopssgd` and so on with timm's factory;
* puts `dispatch_clip_grad` and `NativeScaler` below in the places of timm's in `timm.utils`, so that scripts clip in
  the step without an edit. What they do for an optimizer that is not gradops's is what timm's do. Import it before
  `from timm.utils import ...`; `timm.utils.dispatch_clip_grad` as an attribute is found at any time.

`python -m gradops.timm train.py --opt gradopssgd ...` runs a script, such as timm's train.py, with all of that and with
`ModelEma` for its `--model-ema`.
"""

from gradops._frameworks import needs

with needs("timm"):
    import timm as _timm  # noqa: F401

from gradops.timm.clip import dispatch_clip_grad, install
from gradops.timm.ema import ModelEma
from gradops.timm.names import OPTIMIZERS
from gradops.timm.scaler import NativeScaler

__all__ = ["OPTIMIZERS", "ModelEma", "NativeScaler", "dispatch_clip_grad"]

install(NativeScaler)
