"""Distributed checkpoints that lack keys of ours: plain torch's, and older ones of this library.

torch.distributed.checkpoint demands of a checkpoint every key that the optimizer's state dict has now, so that each key
added to it would lock out all checkpoints written before. A loading plan leaves out what a checkpoint lacks only if the
user says so for all keys (`allow_partial_load`), and then keeps silent about moments that are missing, too. So the two
places that demand keys learn here that ours may be absent; `None` stands for such a value, which
`OnePass.load_state_dict` takes for its start value.

A state's "step" is among them, since not all of torch's optimizers have one; `load_state_dict` refuses a state without,
where torch's has it. So are the averages of weights and buffers, which begin anew.
"""

import functools
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from gradops.torch_before_2_7 import KEYS_BEFORE_2_7

PREFIX = "gradops_"
_OF_STATE = ("step", "ema", "ema_buffers")
_ENTRY_OF_STATE = re.compile(rf"(^|\.)state\..*\.({'|'.join(_OF_STATE)})$")


def is_ours(key: str) -> bool:
    """Whether a flattened key, such as `optim.param_groups.0.gradops_loss_scale`, ends in one of ours."""
    last = key.rpartition(".")[2]
    return last.startswith(PREFIX) or last in KEYS_BEFORE_2_7 or bool(_ENTRY_OF_STATE.search(key))


def _plan_without_absent_keys(planner: ModuleType) -> None:
    """Has the default load planner ask only for those of our keys that the checkpoint has."""
    original = planner.DefaultLoadPlanner.create_local_plan

    @functools.wraps(original)
    def create_local_plan(self: Any) -> Any:
        there = self.metadata.state_dict_metadata
        absent = [key for key in self.state_dict if is_ours(key) and key not in there]
        for key in absent:
            if self.flatten_state_dict:
                planner.set_element(self.original_state_dict, self.mappings[key], None)
            else:
                self.original_state_dict[key] = None
        if absent:
            self.state_dict = {key: value for key, value in self.state_dict.items() if key not in absent}
        return original(self)

    planner.DefaultLoadPlanner.create_local_plan = create_local_plan


def _unflatten_without_absent_keys(state_dict: ModuleType) -> None:
    """Has the reader of flattened dicts take `None` for those of our keys that a dict lacks."""
    original: Callable[..., Any] = vars(state_dict)["_unflatten_optim_state_dict"]

    @functools.wraps(original)
    def unflatten(optim: Any, flattened: dict[str, Any], info: Any) -> Any:
        ours = {key for group in optim.param_groups for key in group if is_ours(key)}
        # The mapping has names by parameter, and parameters by name.
        names = {name for names in info.fqn_param_mapping.values() if isinstance(names, set) for name in names}
        absent = {f"param_groups.{name}.{key}": None for name in names for key in ours}
        absent.update((f"state.{name}.{key}", None) for name in names for key in _OF_STATE)
        return original(optim, {**absent, **flattened}, info)

    vars(state_dict)["_unflatten_optim_state_dict"] = unflatten


_CHANGES: dict[str, Callable[[ModuleType], None]] = {
    "torch.distributed.checkpoint.default_planner": _plan_without_absent_keys,
    "torch.distributed.checkpoint.state_dict": _unflatten_without_absent_keys,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Applies the changes to modules that are imported later; importing them here would take a second."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, with a loader that changes the module once it has run."""
        if name not in _CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _CHANGES[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def allow_absent_keys() -> None:
    """Applies the changes, now or when torch.distributed.checkpoint is imported."""
    for name, change in _CHANGES.items():
        if name in sys.modules:
            change(sys.modules[name])
    sys.meta_path.insert(0, _AfterImport())
