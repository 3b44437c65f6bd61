"""A parameter as a plan in Python knows it: csrc/host/param_row.h for the backends without native code."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradops.backends.call import Row
from gradops.backends.checks import check_like, check_tensor, check_writable, takes_part
from gradops.backends.torch.math import arithmetic_of
from gradops.update_rule import UpdateRule

# Entries of a state beside its rule's, where the settings want them.
_UNROUNDED = ("master", "compensation")
_BESIDE = (*_UNROUNDED, "ema")

# Address, dtype, shape and strides.
Form = tuple[int, torch.dtype, torch.Size, tuple[int, ...]]


def form_of(tensor: Tensor) -> Form:
    """What must not change for a tensor to be the one that was checked."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


@dataclass(slots=True)
class KnownRow:
    """What the plan knows of a row's tensors, so that the same ones need not be checked again."""

    row: Row
    device: torch.device
    dtypes: tuple[torch.dtype, ...]  # that its parameter may have
    rule: UpdateRule
    param: Form | None = None  # None until it is to be stepped
    grad: tuple[Any, ...] | None = None
    # Every tensor with its address and shape; None where there is none, or where it must be bound again.
    state: tuple[tuple[Tensor, int, torch.Size], ...] | None = None
    version: int = -1  # of the parameter, after the update that gathered its sum of squares and rounded it

    def follow(self) -> None:
        """Takes the parameter and its gradient as they are now; one without a gradient is not looked at.

        Raises:
            RuntimeError: one of them does not fit. Nothing has changed.
        """
        row, param = self.row, self.row.param
        row.grad = grad = param.grad
        if grad is None:
            return
        if param.layout != torch.strided or form_of(param) != self.param:
            self.link_param()
        row.squares_known = row.squares_known and self.version == param._version
        kind = (type(grad), grad.layout, grad.is_neg(), grad.device, grad.dtype, grad.shape)
        if kind != self.grad or grad.untyped_storage().data_ptr() == 0:
            check_like(grad, param, "grad", row.name)
            self.grad = kind
            row.links += 1

    def link_if_it_takes_part(self) -> None:
        """`link_param`, but whatever else is among the parameters, a frozen int8 weight say, may stay there."""
        if takes_part(self.row.param):
            self.link_param()

    def link_param(self) -> None:
        """Takes the parameter as it is now; raises RuntimeError for one that cannot be stepped."""
        param, before = self.row.param, self.param
        check_tensor(param, self.device, "parameter", self.row.name, self.dtypes)
        check_writable(param, "parameter", self.row.name)
        self.param = form_of(param)
        self.row.links += 1
        self.forget_values()
        if before is not None and before[1:] != self.param[1:]:
            self.grad = self.state = None

    def state_depends_on_values(self) -> bool:
        """Whether the state says what the parameter was before it was rounded."""
        state = self.row.state
        return state is not None and ("master" in state or "compensation" in state)

    def forget_values(self) -> None:
        """Somebody may have edited the parameter."""
        self.row.squares_known = False
        if self.state_depends_on_values():
            self.state = None

    def bind_state(self, state: dict[str, Any] | None) -> None:
        """Takes this parameter's state; without a gradient nothing is looked at, and nothing bound.

        Raises:
            RuntimeError: an entry is missing or does not fit.
        """
        self.row.state = self.state = None
        row = self.row
        row.links += 1
        if not state or row.param.grad is None:
            return
        optional = (*(moment.name for moment in self.rule.moments if moment.because), *_BESIDE)
        for key in (*self.rule.moment_names, *_BESIDE):
            if key in optional and key not in state:
                continue
            tensor = self._entry(state, key)
            check_like(tensor, row.param, key, row.name)
            check_writable(tensor, key, row.name)
        for key in self.rule.number_names:
            self._check_number(self._entry(state, key), key)
        row.state = state
        if "ema" in state:
            self._check_dtype(state, "ema", arithmetic_of(row.param))
        if self.state_depends_on_values():
            self._link_unrounded(state)
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        self.state = tuple((value, value.data_ptr(), value.shape) for value in tensors)

    def _check_number(self, number: Tensor, key: str) -> None:
        if number.device != self.device or number.dtype != torch.float32 or number.numel() != 1:
            got = f"{number.dtype} on {number.device} of shape {list(number.shape)}"
            raise RuntimeError(f"gradops: {key} of '{self.row.name}' must be one float32 on {self.device}, got {got}")

    def _link_unrounded(self, state: dict[str, Any]) -> None:
        for key, expected in (("master", torch.float32), ("compensation", self.row.param.dtype)):
            if key in state:
                self._check_dtype(state, key, expected)
        self.version, self.row.squares_known = self.row.param._version, False

    def _check_dtype(self, state: dict[str, Any], key: str, expected: torch.dtype) -> None:
        if state[key].dtype != expected:
            raise RuntimeError(f"gradops: {key} of '{self.row.name}' is {state[key].dtype}; expected {expected}")

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
        if self.state_depends_on_values() and self.version != self.row.param._version:
            return False
        now = [value for value in state.values() if isinstance(value, Tensor)]
        return len(now) == len(self.state) and all(
            value is known and value.data_ptr() == address and value.shape == shape
            for value, (known, address, shape) in zip(now, self.state, strict=True)
        )
