"""What one step of a plan gets, and what a backend in Python must do with it."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradops.backends.sharded.exchange import Exchange
from gradops.settings import Settings
from gradops.stats import StepBuffers


@dataclass(slots=True)
class Row:
    """One parameter of the optimizer; rows are in the order of the groups.

    Attributes:
        param: the parameter.
        name: what messages call it.
        group: index into `StepCall.groups`.
        grad: the gradient of this step; None for a parameter that takes no part.
        state: `optimizer.state[param]`: `step` and the rule's scalars (one float32 value each, on the parameter's
            device) and its moments (of `Settings.moments_dtype`); with `master` (float32), that is updated, and the
            parameter is it rounded; `compensation` (of the parameter's dtype) is what rounding took off it; `ema`
            (float32, or float64 beside such a parameter) is the average of what is updated. None until it is bound.
        squares_known: whether what a backend gathered of the parameter's sum of squares is still true.
        links: another number where the parameter, its state or the kind of its gradient is another than before; of the
            gradient itself only address and strides may have changed else.
    """

    param: Tensor
    name: str
    group: int
    grad: Tensor | None = None
    state: dict[str, Any] | None = None
    squares_known: bool = False
    links: int = 0

    @property
    def updated(self) -> Tensor:
        """What an update reads and writes: the parameter, or its float32 master."""
        return self.param if self.state is None else self.state.get("master", self.param)


def state_of(row: Row) -> dict[str, Any]:
    """The state of a row that takes part."""
    assert row.state is not None
    return row.state


@dataclass(slots=True)
class StepCall:
    """One step; everything in it has been checked, and at least one row has a gradient unless there is an exchange.

    Attributes:
        rows: one for each parameter. A backend may keep memory of its own by index, until `forget_rows`.
        groups: the optimizer's `param_groups`, each with its "l1".
        settings: what the optimizer's attributes say.
        loss_scale: one float32 value, what the loss was multiplied by; None for 1.
        grads_scaled: whether the gradients still carry it.
        found_inf: one value, not 0 if somebody saw an inf or NaN in the gradients before.
        buffers: where statistics, counters and the loss scale live.
        exchange: the processes that have other parts of the parameters, of which the rows have this process's; None
            where there are none. A step in which no process has a gradient changes nothing.
    """

    rows: list[Row]
    groups: list[dict[str, Any]]
    settings: Settings
    loss_scale: Tensor | None
    grads_scaled: bool
    found_inf: Tensor | None
    buffers: StepBuffers
    exchange: Exchange | None = None

    def numel(self, index: int) -> int:
        """How many elements the whole parameter of a row has."""
        return self.rows[index].param.numel() if self.exchange is None else self.exchange.numels[index]


class Backend(Protocol):
    """Carries out steps on one kind of device.

    Attributes:
        DTYPES: those of parameters.
    """

    DTYPES: tuple[torch.dtype, ...]

    def forget_rows(self) -> None:
        """The rows are others than at the last step."""

    def step(self, call: StepCall) -> None:
        """One step: writes parameters, moments, step counts and buffers, never gradients; waits for no GPU."""

    def description(self) -> str:
        """What ran the last step, for people."""


class Plan(Protocol):
    """What the optimizer asks of `StepPlan`, which says what each of these does, and of its native twin."""

    def prepare(self, settings: Settings) -> Any: ...

    def bind_params(self, param_groups: list[dict[str, Any]], names: tuple[str, ...], buffers: StepBuffers) -> None: ...

    def bind_state(self, state: dict[Tensor, Any]) -> None: ...

    def params_without_state(self) -> list[int]: ...

    def step(
        self,
        param_groups: list[dict[str, Any]],
        state: dict[Tensor, Any],
        settings: Any,
        loss_scale: Tensor | None,
        grads_scaled: bool,
        found_inf: Tensor | None,
    ) -> bool: ...

    def description(self) -> str: ...

    def refresh(self) -> None: ...
