"""`gradops._C`, where it was built: the one place that knows whether it was."""

import importlib
import warnings
from types import ModuleType

_C: ModuleType | None
try:
    _C = importlib.import_module("gradops._C")
except ModuleNotFoundError:
    _C = None
    MISSING = "gradops was installed without its native code (GRADOPS_NATIVE=0)"
except ImportError as error:
    _C = None
    MISSING = f"gradops was built against another torch ({error})"
    warnings.warn(f"{MISSING}; steps run without native code until it is installed anew", stacklevel=2)
else:
    MISSING = ""


def missing_for(device_type: str) -> str:
    """Why the native code cannot run on devices of this type; empty if it can."""
    if _C is None:
        return MISSING
    if not _C.has_backend(device_type):
        return f"gradops was built without native code for {device_type}"
    return ""
