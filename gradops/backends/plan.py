"""The host path of a step in Python: csrc/step_plan.h for the backends without native code.

Built once for an optimizer. A step walks the parameters and compares identity, address, dtype, shape and strides with
what the plan knows; only what moved is checked anew.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Backend, Row, StepCall
from gradops.backends.checks import check_like, check_tensor, check_writable
from gradops.settings import Settings
from gradops.stats import StepBuffers

_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

# Address, dtype, shape and strides.
Form = tuple[int, torch.dtype, torch.Size, tuple[int, ...]]


def form_of(tensor: Tensor) -> Form:
    """What must not change for a tensor to be the one that was checked."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@dataclass(slots=True)
class _Known:
    """What the plan knows of a row's tensors, so that the same ones need not be checked again."""

    row: Row
    device: torch.device
    param: Form | None = None
    grad: tuple[Any, ...] | None = None
    # Every tensor with its address and shape; None where there is none, or where it must be bound again.
    state: tuple[tuple[Tensor, int, torch.Size], ...] | None = None
    version: int = -1  # of the parameter, after the update that gathered its sum of squares

    def follow(self) -> None:
        """Takes the parameter and its gradient as they are now.

        Raises:
            RuntimeError: one of them does not fit. Nothing has changed.
        """
        row, param = self.row, self.row.param
        if param.layout != torch.strided or form_of(param) != self.param:
            self._link_param()
        row.squares_known = row.squares_known and self.version == param._version
        row.grad = grad = param.grad
        if grad is None:
            return
        kind = (type(grad), grad.layout, grad.is_neg(), grad.device, grad.dtype, grad.shape)
        if kind != self.grad or grad.untyped_storage().data_ptr() == 0:
            check_like(grad, param, "grad", row.name)
            self.grad = kind

    def _link_param(self) -> None:
        param, before = self.row.param, self.param
        check_tensor(param, self.device, "parameter", self.row.name)
        check_writable(param, "parameter", self.row.name)
        self.param = form_of(param)
        self.row.squares_known = False
        if before is not None and before[2:] != self.param[2:]:
            self.grad = self.state = None

    def bind_state(self, state: dict[str, Any] | None) -> None:
        """Takes this parameter's state.

        Raises:
            RuntimeError: an entry is missing or does not fit.
        """
        self.row.state = self.state = None
        if not state:
            return
        row = self.row
        for key in _MOMENTS:
            if key == "max_exp_avg_sq" and key not in state:
                continue
            tensor = self._entry(state, key)
            check_like(tensor, row.param, key, row.name)
            check_writable(tensor, key, row.name)
        step = self._entry(state, "step")
        if step.device != self.device or step.dtype != torch.float32 or step.numel() != 1:
            got = f"{step.dtype} on {step.device} of shape {list(step.shape)}"
            raise RuntimeError(f"gradops: step of '{row.name}' must be one float32 on {self.device}, got {got}")
        row.state = state
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        self.state = tuple((value, value.data_ptr(), value.shape) for value in tensors)

    def _entry(self, state: dict[str, Any], key: str) -> Tensor:
        value = state.get(key)
        if not isinstance(value, Tensor):
            raise RuntimeError(
                f"gradops: the state of '{self.row.name}' has no tensor '{key}'; load a complete state, or clear this "
                "parameter's"
            )
        return value

    def state_is(self, state: dict[str, Any] | None) -> bool:
        """Whether this is the state that was bound, with the same tensors at the same addresses."""
        if not state or self.row.state is not state or self.state is None:
            return not state and self.row.state is None
        now = [value for value in state.values() if isinstance(value, Tensor)]
        return len(now) == len(self.state) and all(
            value is known and value.data_ptr() == address and value.shape == shape
            for value, (known, address, shape) in zip(now, self.state, strict=True)
        )


class StepPlan:
    """What the optimizer's tensors are, checked at each step against what they were."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._known: list[_Known] = []
        self._buffers = StepBuffers()

    @staticmethod
    def prepare(settings: Settings) -> Settings:
        """What `step` takes of these settings, which have been checked."""
        return settings

    def bind_params(self, param_groups: list[dict[str, Any]], names: tuple[str, ...], buffers: StepBuffers) -> None:
        """Takes the parameters of all groups; `names` and the rows of `buffers` have one entry a parameter.

        What the plan knew of a parameter is kept.

        Raises:
            RuntimeError: a parameter cannot be stepped; the plan is then as it was.
        """
        before = {id(known.row.param): known for known in self._known}
        params = [(param, index) for index, group in enumerate(param_groups) for param in group["params"]]
        device = params[0][0].device if params else torch.device("cpu")
        known = []
        for (param, group), name in zip(params, names, strict=True):
            kept = before.get(id(param))
            if kept is None or (kept.row.group, kept.device) != (group, device):
                kept = _Known(Row(param, name, group), device)
                kept._link_param()
            known.append(kept)
        for entry, name in zip(known, names, strict=True):
            entry.row.name = name
        self._known = known
        self._buffers = buffers
        self._backend.forget_rows()

    def bind_state(self, state: dict[Tensor, Any]) -> None:
        """Takes the optimizer's `state` as it is now."""
        for known in self._known:
            entry = state.get(known.row.param)
            if not known.state_is(entry):
                known.bind_state(entry)

    def params_without_state(self) -> list[int]:
        """Indices of the parameters that have a gradient but no state.

        Raises:
            RuntimeError: a gradient does not fit its parameter.
        """
        try:
            return self._follow()
        finally:
            self._let_go_of_grads()

    def step(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        settings: Settings,
        loss_scale: Tensor | None,
        grads_scaled: bool,
        found_inf: Tensor | None,
    ) -> bool:
        """One step. False, and nothing has changed, if groups or state are not those that were bound."""
        if not self._same_params(param_groups):
            return False
        try:
            if self._follow() or not all(known.state_is(state.get(known.row.param)) for known in self._known):
                return False
            if any(known.row.grad is not None for known in self._known):
                rows = [known.row for known in self._known]
                call = StepCall(rows, param_groups, settings, loss_scale, grads_scaled, found_inf, self._buffers)
                self._carry_out(call)
            return True
        finally:
            self._let_go_of_grads()

    def _follow(self) -> list[int]:
        for known in self._known:
            known.follow()
        rows = [known.row for known in self._known]
        return [index for index, row in enumerate(rows) if row.grad is not None and row.state is None]

    def _let_go_of_grads(self) -> None:
        for known in self._known:
            known.row.grad = None

    def _carry_out(self, call: StepCall) -> None:
        taking_part = [known for known in self._known if known.row.grad is not None]
        for known in taking_part:
            _check_amsgrad(known.row, call.groups[known.row.group])
        with torch.no_grad():
            self._backend.step(call)
        # A stale graph must not be run backward through, whatever wrote the memory.
        torch.autograd.graph.increment_version([known.row.param for known in taking_part])
        if call.settings.max_relative_step is not None:
            for known in taking_part:
                known.version, known.row.squares_known = known.row.param._version, True

    def description(self) -> str:
        """What runs the steps, for people."""
        return self._backend.description()

    def refresh(self) -> None:
        """Forgets the gathered sizes of the parameters, after edits that no counter shows."""
        for known in self._known:
            known.row.squares_known = False

    def _same_params(self, param_groups: list[dict[str, Any]]) -> bool:
        params = list(chain.from_iterable(group["params"] for group in param_groups))
        if params and self._known and params[0].device != self._known[0].device:
            return False
        groups = chain.from_iterable([index] * len(group["params"]) for index, group in enumerate(param_groups))
        return len(params) == len(self._known) and all(
            known.row.param is param and known.row.group == group
            for known, param, group in zip(self._known, params, groups, strict=True)
        )


def _check_amsgrad(row: Row, group: dict[str, Any]) -> None:
    if group["amsgrad"] and "max_exp_avg_sq" not in (row.state or {}):
        raise RuntimeError(f"gradops: amsgrad is on, but the state of '{row.name}' has no max_exp_avg_sq")
