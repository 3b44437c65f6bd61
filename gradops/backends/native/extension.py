"""`gradops._C`: found, held against the torch that is there, and loaded; the one place that knows whether it was.

It lies beside the package where it was compiled at installation or in a working tree, or in the user's cache, where
`gradops build` puts it. One that was built for another torch is not even opened by the linker.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch

from gradops.building import cache
from gradops.update_rule import UpdateRule

_NAME = "gradops._C"


def _spec() -> tuple[ModuleSpec | None, str]:
    """Where to load from; or why from nowhere."""
    if sys.modules.get(_NAME, sys) is None:
        return None, "blocked in sys.modules"
    beside = importlib.util.find_spec(_NAME)
    found: list[tuple[Path, ModuleSpec | None]] = (
        [(Path(beside.origin), beside)] if beside is not None and beside.origin else []
    )
    found += [(path, importlib.util.spec_from_file_location(_NAME, path)) for path in cache.built()]
    reasons = []
    for path, spec in found:
        if not (reason := cache.misfit(path)):
            return spec, ""
        reasons.append(reason)
    return None, reasons[0] if reasons else "not compiled yet: run gradops build"


def _load() -> tuple[ModuleType | None, str]:
    try:
        spec, reason = _spec()
        if spec is None or spec.loader is None:
            return None, f"gradops' native code is {reason}"
        module = sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        sys.modules.pop(_NAME, None)
        return None, f"gradops' native code does not load ({error}): run gradops build"
    sys.modules["gradops"]._C = module  # type: ignore[attr-defined]
    return module, ""


_C, MISSING = _load()


def missing_for(device_type: str) -> str:
    """Why the native code cannot run on devices of this type; empty if it can."""
    if device_type not in ("cpu", "cuda") or (device_type == "cuda" and torch.version.hip):
        return f"gradops has no native code for {'AMD GPUs' if device_type == 'cuda' else device_type}"
    if _C is None:
        return MISSING
    if not _C.has_backend(device_type):
        return f"gradops was built without native code for {device_type}"
    return ""


def missing_rule(rule: UpdateRule) -> str:
    """Why the native code, where it is loaded, cannot run an update rule; empty if it can."""
    if _C is None or rule.name in _C.update_rules():
        return ""
    return f"gradops' native code has no {rule.title}"


def loaded_from() -> str:
    """Which of the places the native code was loaded from, or why from none."""
    if _C is None or _C.__file__ is None:
        return MISSING
    path = Path(_C.__file__)
    beside = path.parent == Path(__file__).resolve().parents[2]
    return f"{path} ({'installed with the package' if beside else 'by gradops build'})"
