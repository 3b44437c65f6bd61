"""What runs a step: native code, Triton, or torch's own operations; chosen here and nowhere else."""

import functools
import importlib
import importlib.util
import os
import warnings
from dataclasses import dataclass

import torch

from gradops.backends.call import Backend, Plan
from gradops.backends.native import extension
from gradops.backends.plan import StepPlan
from gradops.backends.torch.step import TorchStep
from gradops.backends.triton import rules as triton_rules
from gradops.settings import BACKENDS
from gradops.update_rule import UpdateRule

_advised = False
OLDEST_TRITON = (3, 3)
TRITON_DEVICES = ("cuda", "xpu")  # torch calls ROCm's devices cuda too


@dataclass(frozen=True)
class Choice:
    """A backend for the parameters of one device.

    Attributes:
        name: one of `gradops.settings.BACKENDS`.
        device: where the parameters are.
        reason: why none of those before it was taken; empty for the first.
        sharded: whether some of the parameters are DTensors.
    """

    name: str
    device: torch.device
    reason: str = ""
    sharded: bool = False


def missing(name: str, device_type: str) -> str:
    """Why this backend cannot step parameters on devices of this type; empty if it can."""
    if name == "native":
        return extension.missing_for(device_type)
    if name == "triton":
        return _missing_for_triton(device_type)
    return ""


def missing_rule(name: str, rule: UpdateRule) -> str:
    """Why this backend, where it can run, cannot run this update rule; empty if it can."""
    if name == "native":
        return extension.missing_rule(rule)
    if name == "triton":
        return triton_rules.missing(rule)
    return ""


def backend_for(device: torch.device, rule: UpdateRule | None = None, wanted: str | None = None) -> Choice:
    """The backend for parameters on this device: the one that is `wanted`, or else the first that can run there.

    Args:
        device: where the parameters are.
        rule: the update rule; None for what runs there whatever the rule.
        wanted: one of `gradops.settings.BACKENDS`.

    Raises:
        RuntimeError: the wanted one cannot; the message says why.
    """

    def lacks(name: str) -> str:
        return missing(name, device.type) or ("" if rule is None else missing_rule(name, rule))

    if wanted is not None:
        if reason := lacks(wanted):
            raise RuntimeError(f"backend={wanted!r} cannot step parameters on {device}: {reason}")
        return Choice(wanted, device, f"backend={wanted!r} was asked for")
    reasons: list[str] = []
    for name in BACKENDS:
        # On the CPU Triton only has its interpreter, which is for tests.
        if not (reason := lacks(name)) and (name, device.type) != ("triton", "cpu"):
            return Choice(name, device, "; ".join(reasons))
        reasons += [reason] if reason else []
    raise AssertionError("torch's own operations run everywhere")


def advise(choice: Choice) -> None:
    """Says once, in one line, how to get native code, where a step runs without it for no other reason."""
    global _advised
    if extension.MISSING and choice.reason.startswith(extension.MISSING) and not _advised:
        _advised = True
        where = "in Triton" if choice.name == "triton" else "in torch's own operations"
        warnings.warn(f"{extension.MISSING}; until then steps run {where}", stacklevel=2)


def make_plan(choice: Choice, rule: UpdateRule) -> Plan:
    """A new plan for the chosen backend."""
    if choice.name == "native":
        from gradops.backends.native.plan import NativePlan

        return NativePlan(rule)
    backend = _backend_in_python(choice, rule)
    if not choice.sharded:
        return StepPlan(backend, rule)
    from gradops.backends.sharded.plan import ShardedPlan

    return ShardedPlan(backend, rule)


def _backend_in_python(choice: Choice, rule: UpdateRule) -> Backend:
    if choice.name == "torch":
        return TorchStep(rule, choice.reason)
    from gradops.backends.triton.step import TritonStep

    return TritonStep(rule)


@functools.cache
def _missing_for_triton(device_type: str) -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type not in TRITON_DEVICES and not (interpreted and device_type == "cpu"):
        return f"Triton has no code for {device_type}"
    return _too_old(importlib.import_module("triton").__version__)


def _too_old(triton: str) -> str:
    """Why this version of Triton cannot compile the kernels; empty if it can."""
    if tuple(map(int, triton.split(".")[:2])) >= OLDEST_TRITON:
        return ""
    return (
        "the kernels need Triton 3.3 or newer, which torch 2.7 brings: before it kernels have neither tuples nor "
        f"functions as arguments, this is {triton}"
    )
